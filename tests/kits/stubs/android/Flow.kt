package kotlinx.coroutines.flow

import kotlin.coroutines.CoroutineContext

interface FlowCollector<in T> {
    suspend fun emit(value: T)
}

interface Flow<out T> {
    suspend fun collect(collector: FlowCollector<T>)
}

fun <T> flow(block: suspend FlowCollector<T>.() -> Unit): Flow<T> = object : Flow<T> {
    override suspend fun collect(collector: FlowCollector<T>) = collector.block()
}

fun <T> Flow<T>.flowOn(context: CoroutineContext): Flow<T> = this
