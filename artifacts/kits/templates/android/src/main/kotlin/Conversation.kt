package «package»

import java.io.File
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/**
 * A message that does not fit into the model's cache. The conversation is as it was before it.
 *
 * @param tokens of the message
 * @param taken tokens of the conversation and its template without the message
 * @param context tokens that the cache holds
 */
class MessageTooLongException(val tokens: Int, val taken: Int, val context: Int) : Exception(
    "the message has $tokens tokens, and there is room for ${maxOf(0, context - 1 - taken)}: the cache holds $context, " +
        "the conversation and its template take $taken, and an answer needs at least 1"
)

/** A model with its cache. */
internal interface Engine {
    /**
     * Brings the cache to [tokens] by these calls; one that starts at 0 empties it first. Returns the token that follows,
     * null where the runtime ends the answer itself.
     */
    fun run(calls: List<Call>, tokens: List<Int>): Int?
}

/** The system message that a bundle was compiled with (`--prefix`), null where it was compiled without. */
internal fun shippedPrefix(bundle: File): String? = File(bundle, "prefix.txt").takeIf { it.isFile }?.readText()

/** What was said, and what of it the model's cache holds. Throws IllegalArgumentException where the model takes no [system]. */
internal class Conversation(private val rules: Rules, private val chat: ChatFormat, system: String?) {
    private val start = listOfNotNull(system?.let { Message("system", it) })

    var messages = start
        private set

    /** The tokens that the cache holds, none where that is not known. */
    var seen = emptyList<Int>()
        private set

    init {
        require(system == null || "system" in chat.roles) { "this model takes no system message" }
    }

    /** As [read] takes it: what was said, and what the cache holds, in the form of `pocketphi chat --session`. */
    fun written(): String {
        val said = JSONArray(messages.map { JSONArray(listOf(it.role, it.content)) })
        return JSONObject().put("messages", said).put("seen", JSONArray(seen)).toString()
    }

    /** Takes a conversation up, with the cache that belongs to it. Throws IllegalStateException for a text that is none. */
    fun read(text: String) {
        try {
            val all = JSONObject(text)
            val said = all.getJSONArray("messages")
            val held = all.getJSONArray("seen")
            val taken = (0 until said.length()).map { i -> said.getJSONArray(i).let { Message(it.getString(0), it.getString(1)) } }
            seen = (0 until held.length()).map { held.getInt(it) }
            messages = taken
        } catch (error: JSONException) {
            seen = emptyList() // the cache holds another's
            throw IllegalStateException("the file holds no conversation of this app", error)
        }
    }

    /** Begins again with the system message alone. */
    fun reset() {
        messages = start
    }

    /** The message to send for [text], with the passages of [documents] that fit: see [Grounded.of]. */
    fun ground(text: String, documents: Documents?, tokenize: (String) -> List<Int>): Grounded {
        if (documents == null) return Grounded(text, emptyList(), messages)
        val made = Grounded.of(documents, text, messages, rules.context) { tokenize(chat.render(it)).size }
        messages = made.messages
        return made
    }

    /**
     * Answers [text] in at most [limit] tokens. [show] gets a piece for each; what it throws ends the answer.
     *
     * The message belongs to the conversation once its prompt ran. The answer is then what was shown, however it ended. Throws
     * [MessageTooLongException].
     *
     * @param tokenize a text's tokens, none added
     * @param decode the text that a token of the answer completes
     */
    suspend fun send(
        text: String,
        limit: Int,
        engine: Engine,
        tokenize: (String) -> List<Int>,
        decode: (Int) -> String,
        show: suspend (String) -> Unit
    ) {
        val prompt = prompt(text, tokenize)
        var token = run(engine, prompt)
        messages = messages + Message("user", text)
        val answer = StringBuilder()
        try {
            var made = 1
            while (token != null) {
                val end = rules.end(token, made, prompt.size, limit)
                if (end == End.STOP) break
                val piece = decode(token)
                answer.append(piece)
                show(piece)
                if (end != null) break
                token = run(engine, seen + token)
                made += 1
            }
        } finally {
            messages = messages + Message("assistant", answer.toString())
        }
    }

    private fun prompt(text: String, tokenize: (String) -> List<Int>): List<Int> {
        val prompt = tokenize(chat.render(messages + Message("user", text)))
        if (prompt.size < rules.context) return prompt
        val taken = tokenize(chat.render(messages + Message("user", ""))).size
        throw MessageTooLongException(prompt.size - taken, taken, rules.context)
    }

    private fun run(engine: Engine, tokens: List<Int>): Int? {
        val calls = rules.calls(seen, tokens)
        seen = emptyList() // so it stays where the engine fails half-way
        return engine.run(calls, tokens).also { seen = tokens }
    }
}
