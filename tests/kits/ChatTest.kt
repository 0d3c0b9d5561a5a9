package com.example.sample

import android.app.FreeMemory
import android.content.Context
import android.test.mock.MockContext
import java.io.File
import java.util.Base64
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Deferred
import kotlinx.coroutines.async
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import kotlinx.coroutines.yield
import kotlinx.coroutines.flow.FlowCollector
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Test

/** The kit's own Chat over a toy model, with conversations whose course the reference in Python tells. */
class ChatTest {
    private val bundle = File(System.getProperty("bundle"))

    private class Phone(private val free: Long) : MockContext() {
        private val folder = createTempDir()

        override fun getNoBackupFilesDir() = folder

        override fun getSystemService(name: String): Any? = if (name == Context.ACTIVITY_SERVICE) FreeMemory(free) else null
    }

    private val phone = Phone(1L shl 40)

    private class Answer {
        val pieces = mutableListOf<String>()
        var sources = emptyList<Passage>()
        var error: String? = null
        val begun = CompletableDeferred<Unit>()

        fun shown(stop: Int?) = listOf(if (stop == null) pieces else pieces.take(stop), error)
    }

    @Test
    fun conversations() {
        val cases = objects(JSONArray(File(System.getProperty("talks")).readText()))
        assertTrue(cases.size > 10)
        for (case in cases) {
            Chat(phone, bundle, system = if (case.isNull("system")) null else case.getString("system")).use { chat ->
                val groups = arrays(case.getJSONArray("groups")).map { objects(it) }
                val found = groups.flatMap { group -> runBlocking { withTimeout(20_000) { take(chat, group) } } }
                val ways = arrays(case.getJSONArray("ways")).map { way -> arrays(way).map(::outcome) }
                assertTrue("${case.getString("name")}: $found\n${ways.joinToString("\n")}", found in ways)
            }
        }
    }

    @Test
    fun closingEndsTheAnswer() = runBlocking {
        val chat = Chat(phone, bundle)
        val answer = Answer()
        val first = async { collect(chat, "Hello\u0005", 400, answer) } // the toys end no answer to this, and are at most 65 pieces ahead
        answer.begun.await()
        val second = async { collect(chat, "And?", 400, Answer()) }
        yield() // the second one waits for its turn
        chat.close()
        assertEquals(listOf("the chat is closed", "the chat is closed"), listOf(first.await().error, second.await().error))
        assertTrue(first.await().pieces.isNotEmpty())
        assertEquals("the chat is closed", collect(chat, "So?", 400, Answer()).error)
        chat.close()
    }

    @Test
    fun answersFromDocuments() = runBlocking {
        val vectors = JSONObject(File(System.getProperty("vectors")).readText()).getJSONObject("documents")
        val index = createTempDir().resolve("index").apply { writeBytes(Base64.getDecoder().decode(vectors.getString("index"))) }
        val case = vectors.getJSONArray("grounded").getJSONObject(0)
        val answer = Documents(index).use { documents ->
            Chat(phone, bundle).use { collect(it, case.getString("question"), 40, Answer(), documents) }
        }
        val same = Chat(phone, bundle).use { collect(it, case.getString("message"), 40, Answer()) } // the model read this
        assertEquals(same.shown(null), answer.shown(null))
        assertEquals(arrays(case.getJSONArray("passages")).map { it.getString(3) }, answer.sources.map { it.text })
        assertEquals(listOf(true, true), listOf(answer.pieces.isNotEmpty(), answer.sources.isNotEmpty()))
    }

    @Test
    fun aPhoneWithoutMemory() = try {
        Chat(Phone(1000), bundle)
        fail()
    } catch (error: NotEnoughMemoryException) {
        assertEquals("the model needs ${ModelInfo.MEMORY_BYTES} bytes, 1000 are available", error.message)
    }

    @Test
    fun anotherBundle() = try {
        Chat(phone, createTempDir().apply { bundle.copyRecursively(this); resolve("config.json").appendText(" ") })
        fail()
    } catch (error: DamagedBundleException) {
        assertTrue(error.message!!.startsWith("config.json has "))
    }

    private var resets = 0

    /** Each begins when the one before it has. */
    private suspend fun CoroutineScope.take(chat: Chat, group: List<JSONObject>): List<List<Any?>> {
        val answers = mutableListOf<Deferred<Answer>>()
        for (step in group) {
            val answer = Answer()
            answers += async {
                if (step.has("reset")) { // both begin a new conversation
                    if (resets++ % 2 == 0) chat.reset() else chat.adapt(null)
                } else {
                    val stop = if (step.isNull("stop")) null else step.getInt("stop")
                    collect(chat, step.getString("send"), step.getInt("limit"), answer) { count ->
                        if (count == stop) throw CancellationException("stopped")
                    }
                }
                answer.begun.complete(Unit)
                answer
            }
            if (step === group.first()) answer.begun.await()
            while (users(chat) < answers.size && !answer.begun.isCompleted) delay(1)
            delay(20)
        }
        return answers.mapIndexed { i, it -> it.await().shown(if (group[i].optInt("stop") > 0) group[i].getInt("stop") else null) }
    }

    /** How many of the steps are under way or wait. */
    private fun users(chat: Chat): Int {
        val turns = Chat::class.java.getDeclaredField("turns").apply { isAccessible = true }.get(chat)
        return Turns::class.java.getDeclaredField("users").apply { isAccessible = true }.getInt(turns)
    }

    private suspend fun collect(
        chat: Chat,
        text: String,
        limit: Int,
        into: Answer,
        documents: Documents? = null,
        look: (Int) -> Unit = {}
    ): Answer {
        try {
            chat.send(text, limit, documents, { into.sources = it }).collect(object : FlowCollector<String> {
                override suspend fun emit(value: String) {
                    into.pieces += value
                    into.begun.complete(Unit)
                    look(into.pieces.size)
                }
            })
        } catch (stopped: CancellationException) {
            if (stopped.message != "stopped") throw stopped
        } catch (error: Exception) {
            into.error = error.message
        }
        into.begun.complete(Unit)
        return into
    }

    private fun outcome(step: JSONArray): List<Any?> =
        listOf(step.getJSONArray(0).let { all -> (0 until all.length()).map { all.getString(it) } }, if (step.isNull(1)) null else step.getString(1))

    private fun objects(all: JSONArray): List<JSONObject> = (0 until all.length()).map { all.getJSONObject(it) }

    private fun arrays(all: JSONArray): List<JSONArray> = (0 until all.length()).map { all.getJSONArray(it) }
}
