package android.app

open class ActivityManager {
    open fun getMemoryInfo(outInfo: MemoryInfo) {}

    class MemoryInfo {
        @JvmField var availMem: Long = 0
        @JvmField var totalMem: Long = 0
        @JvmField var lowMemory: Boolean = false
    }
}
