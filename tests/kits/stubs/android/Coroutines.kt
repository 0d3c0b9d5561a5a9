// What the kits use of kotlinx.coroutines 1.9, from https://kotlinlang.org/api/kotlinx.coroutines, running where it is collected.
package kotlinx.coroutines

import kotlin.coroutines.CoroutineContext
import kotlin.coroutines.EmptyCoroutineContext

object Dispatchers {
    val Default: CoroutineContext = EmptyCoroutineContext
}
