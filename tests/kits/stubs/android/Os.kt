package android.os

object Debug {
    @JvmStatic fun getMemoryInfo(memoryInfo: MemoryInfo) {}

    class MemoryInfo {
        val totalPss: Int get() = 0
    }
}
