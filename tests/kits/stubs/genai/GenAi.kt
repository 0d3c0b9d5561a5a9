// What the kit uses of ai.onnxruntime.genai 0.18, from src/java of github.com/microsoft/onnxruntime-genai: interfaces only.
package ai.onnxruntime.genai

class GenAIException(message: String) : Exception(message)

class Model(modelPath: String) : AutoCloseable {
    override fun close() {}
}

class Sequences : AutoCloseable {
    fun numSequences(): Long = TODO()

    fun getSequence(sequenceIndex: Long): IntArray = TODO()

    override fun close() {}
}

class Tokenizer(model: Model) : AutoCloseable {
    fun encode(string: String): Sequences = TODO()

    fun createStream(): TokenizerStream = TODO()

    override fun close() {}
}

class TokenizerStream : AutoCloseable {
    fun decode(token: Int): String = TODO()

    override fun close() {}
}

class GeneratorParams(model: Model) : AutoCloseable {
    fun setSearchOption(optionName: String, value: Double) {}

    fun setSearchOption(optionName: String, value: Boolean) {}

    override fun close() {}
}

class Generator(model: Model, generatorParams: GeneratorParams) : AutoCloseable {
    fun isDone(): Boolean = TODO()

    fun appendTokens(inputIDs: IntArray) {}

    fun rewindTo(newLength: Long) {}

    fun generateNextToken() {}

    fun getSequence(sequenceIndex: Long): IntArray = TODO()

    fun getLastTokenInSequence(sequenceIndex: Long): Int = TODO()

    override fun close() {}
}
