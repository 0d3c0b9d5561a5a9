package «package»

/** One turn of a conversation. [role] is `system`, `user` or `assistant`. */
data class Message(val role: String, val content: String)

/**
 * The model's chat template.
 *
 * @param begin starts a conversation with a system message, [default] one without
 * @param roles what stands before and after a message, by its role
 * @param answer what the model continues
 * @param strips roles around whose messages white space is dropped
 */
class ChatFormat(
    private val begin: String,
    private val default: String,
    internal val roles: Map<String, Pair<String, String>>,
    private val answer: String,
    private val strips: Set<String>
) {
    /** The prompt up to where the assistant's answer starts. */
    fun render(messages: List<Message>): String = buildString {
        append(if (messages.firstOrNull()?.role == "system") begin else default)
        for (message in messages) {
            val (before, after) = requireNotNull(roles[message.role]) { "this model knows no role ${message.role}" }
            append(before)
            append(if (message.role in strips) message.content.trim { it in WHITE_SPACE } else message.content)
            append(after)
        }
        append(answer)
    }

    private companion object {
        /** What `trim` of a chat template drops: Python's white space. */
        const val WHITE_SPACE = "\u0009\u000a\u000b\u000c\u000d\u001c\u001d\u001e\u001f \u0085\u00a0\u1680" +
            "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
    }
}
