package «package»

import java.io.Closeable
import java.io.File

/**
 * The model in the TVM runtime, through its C interface, which guesses tokens that are likely to come next: results stay the same.
 * Throws IllegalStateException, after [close] too.
 */
internal class NativeModel(bundle: File, options: String = """{"draft": "auto"}""") : Closeable {
    private var handle: Long = open(bundle.path, options)

    /** Tokens that the model knows, and that its cache holds. */
    val vocabulary: Int @Synchronized get() = vocabulary(opened())
    val context: Int @Synchronized get() = context(opened())

    /** Tokens in the cache. */
    val length: Int @Synchronized get() = length(opened())

    /** Appends tokens; the logits that follow the last one. */
    @Synchronized
    fun prefill(tokens: IntArray): FloatArray = FloatArray(vocabulary).also { prefill(opened(), tokens, it) }

    /** Appends one token; the logits that follow it. */
    @Synchronized
    fun decode(token: Int): FloatArray = FloatArray(vocabulary).also { decode(opened(), token, it) }

    /** Switches an adapter of the bundle on, none for null, and empties the cache. */
    @Synchronized
    fun adapter(name: String?) = adapter(opened(), name)

    /** Lets a second, smaller bundle guess what comes next, none for null. Results stay the same. */
    @Synchronized
    fun draft(bundle: File?) = draft(opened(), bundle?.path)

    /** Writes the tokens, what the cache has of them, and a text to a file. */
    @Synchronized
    fun save(file: File, note: String) = save(opened(), file.path, note.toByteArray())

    /** Goes on where [save] was called, and returns the text; nothing changes where it throws. */
    @Synchronized
    fun load(file: File): String = String(load(opened(), file.path))

    /** Empties the cache. */
    @Synchronized
    fun reset() = reset(opened())

    @Synchronized
    override fun close() {
        if (handle != 0L) close(handle)
        handle = 0
    }

    private fun opened(): Long = handle.also { check(it != 0L) { "the model is closed" } }

    private external fun open(folder: String, options: String): Long
    private external fun prefill(handle: Long, tokens: IntArray, logits: FloatArray)
    private external fun decode(handle: Long, token: Int, logits: FloatArray)
    private external fun adapter(handle: Long, name: String?)
    private external fun draft(handle: Long, folder: String?)
    private external fun save(handle: Long, path: String, note: ByteArray)
    private external fun load(handle: Long, path: String): ByteArray
    private external fun reset(handle: Long)
    private external fun vocabulary(handle: Long): Int
    private external fun context(handle: Long): Int
    private external fun length(handle: Long): Int
    private external fun close(handle: Long)

    private companion object {
        init {
            System.loadLibrary("pocketphi_jni")
        }
    }
}
