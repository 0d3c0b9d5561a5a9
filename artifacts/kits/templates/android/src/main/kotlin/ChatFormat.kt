package «package»

/** One turn of a conversation. [role] is `system`, `user` or `assistant`. */
data class Message(val role: String, val content: String)

/**
 * The model's chat template.
 *
 * @param begin starts a conversation with a system message, [default] one without
 * @param roles what stands before and after a message, by its role
 * @param answer what the model continues
 * @param strips whether white space around a message is dropped
 */
class ChatFormat(
    private val begin: String,
    private val default: String,
    private val roles: Map<String, Pair<String, String>>,
    private val answer: String,
    private val strips: Boolean
) {
    /** The prompt up to where the assistant's answer starts. */
    fun render(messages: List<Message>): String = buildString {
        append(if (messages.firstOrNull()?.role == "system") begin else default)
        for (message in messages) {
            val (before, after) = requireNotNull(roles[message.role]) { "this model knows no role ${message.role}" }
            append(before)
            append(if (strips) message.content.trim { it in " \t\r\n" } else message.content)
            append(after)
        }
        append(answer)
    }
}
