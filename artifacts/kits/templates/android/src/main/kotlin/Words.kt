package «package»

import java.text.Normalizer
import java.util.Locale

/** Texts and questions as words that an index of documents knows. */
internal object Words {
    /** Letters of languages that write no spaces, or join words: Thai, Lao, Burmese, Khmer, Japanese, Chinese, Korean. */
    private val UNSPACED = Regex(
        "[\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff\\u3040-\\u30ff\\u3400-\\u4dbf\\u4e00-\\u9fff\\uac00-\\ud7af" +
            "\\uf900-\\ufaff\\x{20000}-\\x{3ffff}]+"
    )
    /** What one may write or leave out: accents, vowel signs of Hebrew and Arabic, hyphens that show at a line's end alone. */
    private val MARKS = Regex(
        "[\\u00ad\\u0300-\\u036f\\u0591-\\u05bd\\u05bf\\u05c1\\u05c2\\u05c4\\u05c5\\u05c7\\u0610-\\u061a\\u0640" +
            "\\u064b-\\u065f\\u0670\\u06d6-\\u06dc\\u06df-\\u06e8\\u06ea-\\u06ed]+"
    )
    private val THOUSANDS = Regex("(?<![\\p{Nd},.])\\p{Nd}{1,3}(?:,\\p{Nd}{3})+(?![\\p{Nd},])")
    private val WORD = Regex("[\\p{L}\\p{N}]+")

    /** Words that a question has whatever it is about. */
    private val STOP = """
«stop_words | join(" ") | wordwrap(100) | indent(8, first=true)»
    """.trim().split(Regex("\\s+")).toSet()

    /** Without accents. Where no spaces are written, every two neighbours become a word. Numbers stand there without commas too. */
    fun spaced(text: String): String {
        val bare = Normalizer.normalize(MARKS.replace(Normalizer.normalize(text, Normalizer.Form.NFD), ""), Normalizer.Form.NFC)
        val numbered = THOUSANDS.replace(bare) { "${it.value} ${it.value.replace(",", "")}" }
        return UNSPACED.replace(numbered) { " ${pairs(it.value).joinToString(" ")} " }
    }

    /** The words of a question, each once, in their order; without those that any question has, where others are left. */
    fun of(question: String): List<String> {
        val every = WORD.findAll(spaced(question)).map { it.value.toLowerCase(Locale.ROOT) }.toList()
        val told = every.filter { it !in STOP }
        return (if (told.isEmpty()) every else told).distinct().take(«most_words»)
    }

    private fun pairs(run: String): List<String> {
        val letters = mutableListOf<String>()
        var at = 0
        while (at < run.length) {
            val count = Character.charCount(run.codePointAt(at))
            letters += run.substring(at, at + count)
            at += count
        }
        return if (letters.size == 1) letters else letters.zipWithNext { a, b -> a + b }
    }
}
