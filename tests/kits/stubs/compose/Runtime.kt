// What the example's screen uses of Jetpack Compose, from https://developer.android.com/reference/kotlin/androidx/compose/runtime:
// types only, nothing is shown. That a composable is called by composables alone is for Compose's own compiler to see.
package androidx.compose.runtime

import kotlin.reflect.KProperty
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.GlobalScope

@Target(AnnotationTarget.FUNCTION, AnnotationTarget.TYPE, AnnotationTarget.PROPERTY_GETTER)
annotation class Composable

interface State<out T> {
    val value: T
}

interface MutableState<T> : State<T> {
    override var value: T
}

operator fun <T> State<T>.getValue(thisObj: Any?, property: KProperty<*>): T = value

operator fun <T> MutableState<T>.setValue(thisObj: Any?, property: KProperty<*>, value: T) {
    this.value = value
}

fun <T> mutableStateOf(value: T): MutableState<T> = object : MutableState<T> {
    override var value = value
}

class SnapshotStateList<T> : MutableList<T> by ArrayList<T>()

fun <T> mutableStateListOf(): SnapshotStateList<T> = SnapshotStateList()

@Composable
fun <T> remember(calculation: () -> T): T = calculation()

@Composable
fun rememberCoroutineScope(): CoroutineScope = GlobalScope

@Composable
fun LaunchedEffect(key1: Any?, block: suspend CoroutineScope.() -> Unit) {}

class CompositionLocal<T>(private val value: () -> T) {
    val current: T @Composable get() = value()
}
