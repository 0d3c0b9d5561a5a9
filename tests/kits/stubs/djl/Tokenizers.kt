// What the kit uses of ai.djl.huggingface:tokenizers 0.33, from https://javadoc.io/doc/ai.djl.huggingface/tokenizers. This one
// takes bytes for tokens.
package ai.djl.huggingface.tokenizers

import java.nio.file.Path

class Encoding(val ids: LongArray)

class HuggingFaceTokenizer private constructor() : AutoCloseable {
    fun encode(text: String, addSpecialTokens: Boolean, withOverflowingTokens: Boolean): Encoding =
        Encoding(text.toByteArray().map { it.toLong() and 255 }.toLongArray())

    fun decode(ids: LongArray, skipSpecialTokens: Boolean): String = String(ids.map { it.toByte() }.toByteArray())

    override fun close() {}

    companion object {
        @JvmStatic fun newInstance(modelPath: Path): HuggingFaceTokenizer = HuggingFaceTokenizer()
    }
}
