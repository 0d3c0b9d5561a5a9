// What the kits use of kotlinx.coroutines' flows, which Debian's 1.0.1 has not yet, from https://kotlinlang.org/api/kotlinx.coroutines.
package kotlinx.coroutines.flow

import kotlin.coroutines.CoroutineContext
import kotlin.coroutines.coroutineContext
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.launch

interface FlowCollector<in T> {
    suspend fun emit(value: T)
}

interface Flow<out T> {
    suspend fun collect(collector: FlowCollector<T>)
}

/** As there, an emission throws where the coroutine was cancelled. */
fun <T> flow(block: suspend FlowCollector<T>.() -> Unit): Flow<T> = object : Flow<T> {
    override suspend fun collect(collector: FlowCollector<T>) {
        val checked = object : FlowCollector<T> {
            override suspend fun emit(value: T) {
                if (coroutineContext[Job]?.isActive == false) throw CancellationException("cancelled")
                collector.emit(value)
            }
        }
        checked.block()
    }
}

/** As there, a coroutine of its own runs what lies above, up to 64 values ahead of what collects. */
fun <T> Flow<T>.flowOn(context: CoroutineContext): Flow<T> {
    val above = this
    return object : Flow<T> {
        override suspend fun collect(collector: FlowCollector<T>) = coroutineScope {
            val values = Channel<T>(64)
            val producer = launch(context) {
                try {
                    above.collect(object : FlowCollector<T> {
                        override suspend fun emit(value: T) = values.send(value)
                    })
                    values.close()
                } catch (error: Throwable) {
                    values.close(error)
                }
            }
            try {
                for (value in values) collector.emit(value)
            } finally {
                producer.cancel()
            }
        }
    }
}

fun <T> Flow<T>.onEach(action: suspend (T) -> Unit): Flow<T> = through { value ->
    action(value)
    emit(value)
}

fun <T> Flow<T>.onCompletion(action: suspend FlowCollector<T>.(cause: Throwable?) -> Unit): Flow<T> {
    val above = this
    return flow {
        var cause: Throwable? = null
        try {
            above.collect(this)
        } catch (error: Throwable) {
            cause = error
            throw error
        } finally {
            action(cause)
        }
    }
}

fun <T> Flow<T>.catch(action: suspend FlowCollector<T>.(cause: Throwable) -> Unit): Flow<T> {
    val above = this
    return flow {
        try {
            above.collect(this)
        } catch (cancelled: CancellationException) {
            throw cancelled
        } catch (error: Throwable) {
            action(error)
        }
    }
}

fun <T> Flow<T>.launchIn(scope: CoroutineScope): Job = scope.launch { through<T, T> {}.collect(Nothing) }

private fun <T, R> Flow<T>.through(each: suspend FlowCollector<R>.(T) -> Unit): Flow<R> {
    val above = this
    return flow {
        val below = this
        above.collect(object : FlowCollector<T> {
            override suspend fun emit(value: T) = below.each(value)
        })
    }
}

private object Nothing : FlowCollector<Any?> {
    override suspend fun emit(value: Any?) {}
}
