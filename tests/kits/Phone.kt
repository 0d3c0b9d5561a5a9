package android.app // whose ActivityManager only its own package makes

/** A phone with so many bytes free. */
class FreeMemory(private val free: Long) : ActivityManager() {
    override fun getMemoryInfo(outInfo: MemoryInfo) {
        outInfo.availMem = free
    }
}
