package «package»

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import android.content.Context
import java.io.Closeable
import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn

/**
 * A conversation with the model in [bundle], a folder. One at a time, from one coroutine; [close] frees the memory.
 *
 * Opening reads every file the first time (a second or so a gigabyte): do it off the main thread. Throws
 * [DamagedBundleException] for a bundle that is not whole, and [NotEnoughMemoryException] before the system would end the app.
 */
class Chat(
    context: Context,
    bundle: File,
    private val sampler: Sampler = Sampler(),
    system: String? = null
) : Closeable {
    private val model: NativeModel
    private val tokenizer: HuggingFaceTokenizer
    private val messages = system?.let { mutableListOf(Message("system", it)) } ?: mutableListOf()
    private var seen = emptyList<Int>()

    init {
        Integrity.check(bundle, ModelInfo.MANIFEST_SHA256, File(context.noBackupFilesDir, "pocketphi-checked"))
        MemoryReport.require(context, ModelInfo.MEMORY_BYTES)
        model = NativeModel(bundle)
        tokenizer = HuggingFaceTokenizer.newInstance(File(bundle, "tokenizer.json").toPath())
    }

    /** Answers [text] in at most [limit] tokens. The text comes in pieces, as it is made; collecting runs the model. */
    fun send(text: String, limit: Int = 512): Flow<String> = flow<String> {
        messages += Message("user", text)
        val prompt = encode(ModelInfo.chat.render(messages))
        require(prompt.size < ModelInfo.CONTEXT) { "the conversation has ${prompt.size} tokens; start a new one" }
        var logits = run(prompt)
        val answer = StringBuilder()
        try {
            val stream = TextStream(this@Chat::decode)
            var made = 0
            do {
                val token = sampler.choose(logits)
                made += 1
                val end = ModelInfo.rules.end(token, made, prompt.size, limit)
                if (end != End.STOP) {
                    val piece = stream.step(token)
                    answer.append(piece)
                    emit(piece)
                }
                if (end == null) logits = run(seen + token)
            } while (end == null)
        } finally { // also where the collector was cancelled
            messages += Message("assistant", answer.toString())
        }
    }.flowOn(Dispatchers.Default)

    override fun close() {
        tokenizer.close()
        model.close()
    }

    /** Brings the model's cache to [tokens]; the logits that follow. */
    private fun run(tokens: List<Int>): FloatArray {
        var logits = FloatArray(0)
        for (call in ModelInfo.rules.calls(seen, tokens)) {
            if (call.start == 0) model.reset()
            val part = tokens.subList(call.start, call.start + call.count).toIntArray()
            logits = if (call.function == "decode") model.decode(part[0]) else model.prefill(part)
        }
        seen = tokens
        return logits
    }

    private fun encode(text: String): List<Int> = tokenizer.encode(text, false, false).ids.map { it.toInt() }

    private fun decode(tokens: List<Int>): String = tokenizer.decode(tokens.map { it.toLong() }.toLongArray(), true)
}
