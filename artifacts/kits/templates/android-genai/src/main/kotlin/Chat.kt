package «package»

import ai.onnxruntime.genai.Generator
import ai.onnxruntime.genai.GeneratorParams
import ai.onnxruntime.genai.Model
import ai.onnxruntime.genai.Tokenizer
import android.content.Context
import java.io.Closeable
import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn

/** How the next token is chosen. Temperature 0 takes the most likely one; [topK] 0 and [topP] 1 set no limit. */
data class Sampling(val temperature: Double = 0.0, val topK: Int = 0, val topP: Double = 1.0)

/**
 * A conversation with the model in [bundle], a folder. One at a time, from one coroutine; [close] frees the memory.
 *
 * Opening reads every file the first time (a second or so a gigabyte): do it off the main thread. Throws
 * [DamagedBundleException] for a bundle that is not whole, and [NotEnoughMemoryException] before the system would end the app.
 */
class Chat(context: Context, bundle: File, sampling: Sampling = Sampling(), system: String? = null) : Closeable {
    private val model: Model
    private val tokenizer: Tokenizer
    private val parameters: GeneratorParams
    private val generator: Generator
    private val messages = system?.let { mutableListOf(Message("system", it)) } ?: mutableListOf()
    private var seen = emptyList<Int>()

    init {
        Integrity.check(bundle, ModelInfo.MANIFEST_SHA256, File(context.noBackupFilesDir, "pocketphi-checked"))
        MemoryReport.require(context, ModelInfo.MEMORY_BYTES)
        model = Model(bundle.path)
        tokenizer = Tokenizer(model)
        parameters = GeneratorParams(model)
        parameters.setSearchOption("max_length", ModelInfo.CONTEXT.toDouble())
        parameters.setSearchOption("do_sample", sampling.temperature > 0)
        if (sampling.temperature > 0) {
            parameters.setSearchOption("temperature", sampling.temperature)
            parameters.setSearchOption("top_k", sampling.topK.toDouble())
            parameters.setSearchOption("top_p", sampling.topP)
        }
        generator = Generator(model, parameters)
    }

    /** Answers [text] in at most [limit] tokens. The text comes in pieces, as it is made; collecting runs the model. */
    fun send(text: String, limit: Int = 512): Flow<String> = flow<String> {
        messages += Message("user", text)
        val prompt = tokenizer.encode(ModelInfo.chat.render(messages)).use { it.getSequence(0).toList() }
        require(prompt.size < ModelInfo.CONTEXT) { "the conversation has ${prompt.size} tokens; start a new one" }
        val start = ModelInfo.rules.calls(seen, prompt).first().start
        generator.rewindTo(start.toLong())
        generator.appendTokens(prompt.subList(start, prompt.size).toIntArray())
        val answer = StringBuilder()
        try {
            tokenizer.createStream().use { stream ->
                var made = 0
                do {
                    generator.generateNextToken()
                    val token = generator.getLastTokenInSequence(0)
                    made += 1
                    val end = ModelInfo.rules.end(token, made, prompt.size, limit)
                    if (end != End.STOP) {
                        val piece = stream.decode(token)
                        answer.append(piece)
                        emit(piece)
                    }
                } while (end == null)
            }
        } finally { // also where the collector was cancelled
            seen = generator.getSequence(0).toList().dropLast(1) // the last token is not in the cache yet
            messages += Message("assistant", answer.toString())
        }
    }.flowOn(Dispatchers.Default)

    override fun close() {
        generator.close()
        parameters.close()
        tokenizer.close()
        model.close()
    }
}
