package «package»

/** Tokens in, completed text out: a character that is split over several tokens comes with its last one. */
class TextStream(private val decode: (List<Int>) -> String) {
    private var shown = emptyList<Int>()
    private var pending = emptyList<Int>()

    /** The text that this token completes; often empty. */
    fun step(token: Int): String {
        pending = pending + token
        val before = decode(shown)
        val all = decode(shown + pending)
        val text = if (all.startsWith(before)) all.substring(before.length) else decode(pending)
        if (text.endsWith('\uFFFD')) return ""
        shown = if (text.isEmpty()) shown + pending else pending // after a special token, which shows nothing, no text begins anew
        pending = emptyList()
        return text
    }
}
