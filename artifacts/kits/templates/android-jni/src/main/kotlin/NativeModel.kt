package «package»

import java.io.Closeable
import java.io.File

/** The model in the TVM runtime, through its C interface. Not for several threads at once. Throws IllegalStateException. */
internal class NativeModel(bundle: File, options: String = "{}") : Closeable {
    private var handle: Long = open(bundle.path, options)

    /** Tokens that the model knows, and that its cache holds. */
    val vocabulary: Int get() = vocabulary(handle)
    val context: Int get() = context(handle)

    /** Tokens in the cache. */
    val length: Int get() = length(handle)

    /** Appends tokens; the logits that follow the last one. */
    fun prefill(tokens: IntArray): FloatArray = FloatArray(vocabulary).also { prefill(handle, tokens, it) }

    /** Appends one token; the logits that follow it. */
    fun decode(token: Int): FloatArray = FloatArray(vocabulary).also { decode(handle, token, it) }

    /** Empties the cache. */
    fun reset() = reset(handle)

    override fun close() {
        if (handle != 0L) close(handle)
        handle = 0
    }

    private external fun open(folder: String, options: String): Long
    private external fun prefill(handle: Long, tokens: IntArray, logits: FloatArray)
    private external fun decode(handle: Long, token: Int, logits: FloatArray)
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
