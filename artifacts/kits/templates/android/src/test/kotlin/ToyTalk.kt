package «package»

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.yield
import org.json.JSONObject
import org.junit.Assert.assertTrue

/** A conversation over a toy model whose tokens are bytes, with its answers in turns as those of [Chat]. */
internal class ToyTalk(private val conversation: Conversation) : Engine {
    data class Outcome(val pieces: List<String>, val error: String?, val messages: List<Message>, val seen: List<Int>)

    private class Failure : Exception("failed")

    private val turns = Turns {}
    private var cache = emptyList<Int>()
    private var failsIn: Int? = null

    /** Takes steps that begin at once. */
    fun take(steps: List<JSONObject>): List<Outcome> {
        val found = mutableListOf<Outcome>()
        runBlocking {
            for (step in steps) launch { turns.run { found += take(step) } }
        }
        return found
    }

    private suspend fun take(step: JSONObject): Outcome {
        val pieces = mutableListOf<String>()
        var error: String? = null
        failsIn = if (step.isNull("fail")) null else step.getInt("fail")
        try {
            if (step.has("reset")) conversation.reset() else send(step, pieces)
        } catch (stopped: CancellationException) {
            assertTrue(pieces.size == step.getInt("stop"))
        } catch (other: Failure) {
            error = other.message
        } catch (other: MessageTooLongException) {
            error = other.message
        }
        failsIn = null
        return Outcome(pieces, error, conversation.messages, conversation.seen)
    }

    private suspend fun send(step: JSONObject, pieces: MutableList<String>) {
        val stop = if (step.isNull("stop")) null else step.getInt("stop")
        conversation.send(step.getString("send"), step.getInt("limit"), this, ::tokenize, ::decode) { piece ->
            pieces += piece
            yield()
            if (pieces.size == stop) throw CancellationException("stopped")
        }
    }

    override fun run(calls: List<Call>, tokens: List<Int>): Int? {
        for (call in calls) {
            assertTrue(call.start == 0 || call.start == cache.size)
            cache = cache.take(call.start) + tokens.subList(call.start, call.start + call.count)
        }
        failsIn?.let { left ->
            if (left == 0) {
                cache = cache.take((cache.size + 1) / 2)
                throw Failure()
            }
            failsIn = left - 1
        }
        assertTrue(cache == tokens)
        val letter = tokens.fold(1) { hash, token -> (31 * hash + token) % 65521 } % 29
        return if (letter < 26) 97 + letter else 0
    }

    private fun tokenize(text: String): List<Int> = text.toByteArray().map { it.toInt() and 255 }

    private fun decode(token: Int): String = token.toChar().toString()
}
