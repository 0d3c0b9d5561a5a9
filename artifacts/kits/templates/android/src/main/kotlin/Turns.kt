package «package»

import kotlinx.coroutines.sync.Mutex

/**
 * Runs pieces of work one after the other, in the order in which they came: two answers never share the model's cache.
 *
 * @param free called once, when this is closed and no work is left that uses the model
 */
internal class Turns(private val free: () -> Unit) {
    private val line = Mutex() // first come, first served
    private val lock = Any()
    private var users = 0
    private var closed = false

    /** Throws IllegalStateException after [close], also where it was called while this waited. */
    suspend fun run(work: suspend () -> Unit) {
        synchronized(lock) {
            checkOpen()
            users += 1
        }
        try {
            line.lock()
            try {
                checkOpen()
                work()
            } finally {
                line.unlock()
            }
        } finally {
            leave()
        }
    }

    fun checkOpen() = synchronized(lock) { check(!closed) { "the chat is closed" } }

    /** Does not wait: where work is under way, the model is freed when that ends. */
    fun close() {
        val idle = synchronized(lock) {
            if (closed) return
            closed = true
            users == 0
        }
        if (idle) free()
    }

    private fun leave() {
        val last = synchronized(lock) {
            users -= 1
            closed && users == 0
        }
        if (last) free()
    }
}
