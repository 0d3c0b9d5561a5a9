package «package»

import android.app.ActivityManager
import android.content.Context
import android.os.Debug

/** The phone has too little memory free. */
class NotEnoughMemoryException(message: String) : Exception(message)

/**
 * Bytes of this app, and of the phone.
 *
 * @param used proportional set size of this process
 * @param available what the system could give before it ends other apps
 */
data class MemoryReport(val used: Long, val available: Long, val low: Boolean) {
    companion object {
        /** As things are now. */
        fun of(context: Context): MemoryReport {
            val manager = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
            val phone = ActivityManager.MemoryInfo().also(manager::getMemoryInfo)
            val own = Debug.MemoryInfo().also(Debug::getMemoryInfo)
            return MemoryReport(own.totalPss * 1024L, phone.availMem, phone.lowMemory)
        }

        /** Throws where the model would not fit: loading it anyway would get the app killed. */
        fun require(context: Context, bytes: Long) {
            val now = of(context)
            if (now.available < bytes) {
                throw NotEnoughMemoryException("the model needs $bytes bytes, ${now.available} are available")
            }
        }
    }
}
