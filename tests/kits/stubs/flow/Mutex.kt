// Debian's build of kotlinx.coroutines 1.0.1 has a Mutex that cannot wait (NoSuchFieldError). This one is as fair as theirs.
package kotlinx.coroutines.sync

import java.util.ArrayDeque
import kotlinx.coroutines.CompletableDeferred

class Mutex {
    private val waiting = ArrayDeque<CompletableDeferred<Unit>>()
    private var locked = false

    suspend fun lock() {
        val turn = synchronized(this) {
            if (!locked) {
                locked = true
                return
            }
            CompletableDeferred<Unit>().also { waiting.add(it) }
        }
        try {
            turn.await()
        } catch (cancelled: Throwable) {
            val given = synchronized(this) { !waiting.remove(turn) }
            if (given) unlock()
            throw cancelled
        }
    }

    fun unlock() {
        val next = synchronized(this) { waiting.poll().also { locked = it != null } }
        next?.complete(Unit)
    }
}
