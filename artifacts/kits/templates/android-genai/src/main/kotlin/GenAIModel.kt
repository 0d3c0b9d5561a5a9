package «package»

import ai.onnxruntime.genai.Adapters
import ai.onnxruntime.genai.Generator
import ai.onnxruntime.genai.GeneratorParams
import ai.onnxruntime.genai.Model
import ai.onnxruntime.genai.Tokenizer
import ai.onnxruntime.genai.TokenizerStream
import java.io.Closeable
import java.io.File

/** How the next token is chosen. Temperature 0 takes the most likely one; [topK] 0 and [topP] 1 set no limit. */
data class Sampling(val temperature: Double = 0.0, val topK: Int = 0, val topP: Double = 1.0)

/** The model in onnxruntime-genai, with a cache of [context] tokens. One call at a time. */
internal class GenAIModel(private val bundle: File, context: Int, sampling: Sampling) : Engine, Closeable {
    private val made = mutableListOf<AutoCloseable>()
    private val model: Model
    private val tokenizer: Tokenizer
    private val parameters: GeneratorParams
    private val adapters: Adapters
    private val loaded = mutableSetOf<String>()
    private var generator: Generator? = null

    /** The tokens that the generator holds. */
    private var sequence = emptyList<Int>()

    init {
        try {
            model = keep(Model(bundle.path))
            tokenizer = keep(Tokenizer(model))
            parameters = keep(GeneratorParams(model))
            parameters.setSearchOption("max_length", context.toDouble())
            parameters.setSearchOption("do_sample", sampling.temperature > 0)
            if (sampling.temperature > 0) {
                parameters.setSearchOption("temperature", sampling.temperature)
                parameters.setSearchOption("top_k", sampling.topK.toDouble())
                parameters.setSearchOption("top_p", sampling.topP)
            }
            adapters = keep(Adapters(model))
            generator = Generator(model, parameters)
        } catch (error: Exception) {
            close()
            throw error
        }
    }

    /** Switches an adapter of the bundle on, none for null, and forgets all tokens. An adapter's file is read once. */
    fun adapter(name: String?) {
        if (name != null && loaded.add(name)) {
            try {
                adapters.loadAdapter(File(bundle, "adapters/$name.onnx_adapter").path, name)
            } catch (error: Exception) {
                loaded -= name
                throw error
            }
        }
        sequence = emptyList()
        generator?.close()
        generator = null // it has to be chosen before a generator's first token
        generator = Generator(model, parameters).also { if (name != null) it.setActiveAdapter(adapters, name) }
    }

    override fun run(calls: List<Call>, tokens: List<Int>): Int? {
        val held = sequence
        val generator = checkNotNull(generator) { "no generator: choose an adapter again, or none" }
        sequence = emptyList() // so it stays where the runtime fails half-way
        if (tokens != held) {
            val start = calls.first().start
            generator.rewindTo(start.toLong())
            generator.appendTokens(tokens.subList(start, tokens.size).toIntArray())
        }
        generator.generateNextToken()
        sequence = generator.getSequence(0).toList()
        return if (sequence.size > tokens.size) sequence.last() else null // the runtime does not append the model's end token
    }

    /** A text's tokens, none added. */
    fun tokenize(text: String): List<Int> = tokenizer.encode(text).use { it.getSequence(0).toList() }

    /** Turns the tokens of one answer into text, token by token. */
    fun createStream(): TokenizerStream = tokenizer.createStream()

    override fun close() {
        generator?.close()
        generator = null
        made.asReversed().forEach { it.close() }
    }

    private fun <T : AutoCloseable> keep(it: T): T = it.also { made += it }
}
