// What the kit uses of ai.onnxruntime.genai 0.18, from src/java of github.com/microsoft/onnxruntime-genai. The model is the toy of
// `conversation_vectors.py`: bytes for tokens. It fails where a message has one of two characters, see `kit_talks.py`, ends no answer
// to a message with the character 5, and refuses to be used by two threads at once or after it was closed.
package ai.onnxruntime.genai

import java.util.concurrent.atomic.AtomicBoolean

class GenAIException(message: String) : Exception(message)

abstract class Native : AutoCloseable {
    private var closed = false
    private val used = AtomicBoolean()

    protected fun <T> use(work: () -> T): T {
        if (closed || !used.compareAndSet(false, true)) throw AssertionError("closed, or used by another thread")
        return try {
            work()
        } finally {
            used.set(false)
        }
    }

    override fun close() = use { closed = true }
}

class Model(val modelPath: String) : Native()

class Sequences(private val tokens: IntArray) : Native() {
    fun getSequence(sequenceIndex: Long): IntArray = use { listOf(tokens)[sequenceIndex.toInt()] }
}

class Tokenizer(val model: Model) : Native() {
    fun encode(string: String): Sequences = use { Sequences(string.toByteArray().map { it.toInt() and 255 }.toIntArray()) }

    fun createStream(): TokenizerStream = use { TokenizerStream() }
}

class TokenizerStream : Native() {
    fun decode(token: Int): String = use { token.toChar().toString() }
}

class GeneratorParams(val model: Model) : Native() {
    val options = mutableMapOf<String, Any>()

    fun setSearchOption(optionName: String, value: Double) = use { options[optionName] = value }

    fun setSearchOption(optionName: String, value: Boolean) = use { options[optionName] = value }
}

class Adapters(val model: Model) : Native() {
    val names = mutableSetOf<String>()

    fun loadAdapter(adapterFilePath: String, adapterName: String) = use {
        if (!java.io.File(adapterFilePath).isFile) throw GenAIException("no adapter: $adapterFilePath")
        if (!names.add(adapterName)) throw GenAIException("loaded already: $adapterName")
    }
}

class Generator(val model: Model, generatorParams: GeneratorParams) : Native() {
    private val limit = generatorParams.options.getValue("max_length") as Double
    private val tokens = mutableListOf<Int>()
    private var failsIn = -1
    private var failed = false
    private var shift = 0
    private var endless = false

    fun setActiveAdapter(adapters: Adapters, adapterName: String) = use {
        if (adapterName !in adapters.names || tokens.isNotEmpty()) throw GenAIException("no such adapter, or too late")
        shift = adapterName.length
    }

    fun appendTokens(inputIDs: IntArray) = use {
        if (tokens.size + inputIDs.size > limit) throw GenAIException("more tokens than max_length")
        tokens += inputIDs.toList()
        if (!failed && 7 in inputIDs) failsIn = 0
        if (!failed && 6 in inputIDs) failsIn = 3
        if (5 in inputIDs) endless = true
    }

    fun rewindTo(newLength: Long) = use {
        if (newLength > tokens.size) throw GenAIException("rewound to more than there is")
        tokens.subList(newLength.toInt(), tokens.size).clear()
    }

    fun generateNextToken() = use {
        Thread.sleep(1)
        if (tokens.size >= limit) throw GenAIException("the sequence is full")
        if (failsIn == 0) failed = true
        if (failsIn-- == 0) throw GenAIException("failed")
        val letter = tokens.fold(1) { hash, token -> (31 * hash + token) % 65521 } % (if (endless) 26 else 29) + shift
        if (letter < 26) tokens += 97 + letter // as there, an end token is not appended
    }

    fun getSequence(sequenceIndex: Long): IntArray = use { listOf(tokens.toIntArray())[sequenceIndex.toInt()] }
}
