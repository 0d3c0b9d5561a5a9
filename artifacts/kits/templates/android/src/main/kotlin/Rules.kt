package «package»

/** A call of the model with `tokens[start until start + count]` at position [start]. */
data class Call(val function: String, val start: Int, val count: Int)

/** Why an answer ended: at a stop token, at the caller's limit, or because the cache is full. */
enum class End { STOP, LIMIT, CONTEXT }

/**
 * What the bundle's manifest says of running the model.
 *
 * @param context tokens of a conversation
 * @param chunk tokens of a prefill call, 0 for any number
 * @param rows of the cache, where calls are chunks
 * @param longRopeAfter a sequence that grows beyond it is computed again from its start
 * @param stops tokens that end an answer
 * @param ring position p lies in row p mod [ring], which no call's tokens may go around; 0 where each has a row of its own
 */
data class Rules(
    val context: Int,
    val chunk: Int,
    val rows: Int,
    val longRopeAfter: Int?,
    val stops: Set<Int>,
    val ring: Int
) {
    /**
     * The calls that bring the cache from [seen] to [tokens]: only what is new, unless the start differs or LongRoPE changes its
     * factors in between. Where the first call starts at 0, the cache is reset before it.
     */
    fun calls(seen: List<Int>, tokens: List<Int>): List<Call> {
        var past = seen.size
        if (past >= tokens.size || tokens.subList(0, past) != seen || switches(past, tokens.size)) past = 0
        val calls = mutableListOf<Call>()
        while (past < tokens.size) {
            val left = tokens.size - past
            val row = if (ring > 0) past % ring else past
            val room = minOf(left, chunk, if (ring > 0) ring - row else left)
            val call = when {
                chunk == 0 -> Call(if (left == 1 && past > 0) "decode" else "prefill", past, left)
                room > 1 && row + chunk <= rows -> Call("prefill", past, room)
                else -> Call("decode", past, 1)
            }
            calls += call
            past += call.count
        }
        return calls
    }

    /** Whether an answer ends with [token], where [made] tokens with it are made for a prompt of [prompt] tokens. */
    fun end(token: Int, made: Int, prompt: Int, limit: Int): End? = when {
        token in stops -> End.STOP
        made >= limit -> End.LIMIT
        prompt + made >= context -> End.CONTEXT
        else -> null
    }

    private fun switches(past: Int, total: Int): Boolean =
        longRopeAfter != null && past > 0 && past <= longRopeAfter && longRopeAfter < total
}
