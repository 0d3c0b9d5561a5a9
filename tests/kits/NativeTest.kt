package com.example.sample

import android.app.FreeMemory
import android.test.mock.MockContext
import java.io.File
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Test

/** The JNI code with `toy_runtime.c` in place of a model. */
class NativeTest {
    private val bundle = File(System.getProperty("bundle"))

    @Test
    fun callsReachTheRuntime() = NativeModel(bundle).use { model ->
        assertEquals(256, model.vocabulary)
        assertEquals(2048, model.context)
        val hash = listOf(1, 2, 3).fold(1) { hash, token -> (31 * hash + token) % 65521 }
        assertEquals(97 + hash % 29, best(model.prefill(intArrayOf(1, 2, 3))))
        assertEquals(97 + (31 * hash + 97) % 65521 % 29, best(model.decode(97)))
        assertEquals(4, model.length)
        model.reset()
        assertEquals(0, model.length)
        for (name in listOf("french", null)) {
            model.decode(97)
            model.adapter(name)
            assertEquals(0, model.length)
        }
        model.decode(97)
        for (folder in listOf(bundle, null)) model.draft(folder)
        assertEquals(1, model.length)
    }

    @Test
    fun errorsAreExceptions() {
        assertEquals("/nowhere: no model", message { NativeModel(File("/nowhere")) })
        NativeModel(bundle).use { model ->
            assertEquals("0 tokens", message { model.prefill(intArrayOf()) })
            assertEquals("token -1", message { model.decode(-1) })
            assertEquals("no adapter", message { model.adapter("none") })
            assertEquals("/nowhere: no draft", message { model.draft(File("/nowhere")) })
        }
    }

    @Test
    fun aConversationIsKeptInAFile() {
        val file = File(createTempDir(), "talk")
        val note = "Fünf \uD83E\uDD8A ".repeat(20_000)
        NativeModel(bundle).use { model ->
            model.prefill(intArrayOf(1, 2, 3))
            model.save(file, note)
            val next = model.decode(97).toList()
            model.reset()
            for (round in 1..2) {
                assertEquals(note, model.load(file))
                assertEquals(3, model.length)
            }
            assertEquals(next, model.decode(97).toList())
            assertEquals("cannot be written", message { model.save(File("/nowhere/talk"), "") })
            assertEquals("is no session", message { model.load(File("/nowhere/talk")) })
            assertEquals(4, model.length)
        }
    }

    private class Phone : MockContext() {
        private val folder = createTempDir()

        override fun getNoBackupFilesDir() = folder

        override fun getSystemService(name: String): Any? = FreeMemory(1L shl 40)
    }

    private suspend fun answer(chat: Chat, text: String): String {
        val said = StringBuilder()
        chat.send(text, 8).collect(object : FlowCollector<String> {
            override suspend fun emit(value: String) {
                said.append(value)
            }
        })
        return said.toString()
    }

    @Test
    fun aChatGoesOnFromItsFile() = runBlocking {
        val file = File(createTempDir(), "talk")
        val first = Chat(Phone(), bundle, system = "Be \uD83E\uDD8A \"brief\".")
        first.save(file) // nothing was said yet
        first.load(file)
        answer(first, "Hello")
        first.save(file)
        val expected = listOf(answer(first, "And?"), answer(first, "So?"))
        val second = Chat(Phone(), bundle)
        answer(second, "Something else")
        second.load(file)
        assertEquals(expected, listOf(answer(second, "And?"), answer(second, "So?")))
        second.load(file)
        val missing = File(file.path + "2")
        assertEquals("is no session", message { runBlocking { second.load(missing) } })
        assertEquals(expected[0], answer(second, "And?"))
        NativeModel(bundle).use { it.save(missing, "no JSON") }
        assertEquals("the file holds no conversation of this app", message { runBlocking { second.load(missing) } })
        answer(second, "Does it still talk?")
        first.close()
        second.close()
    }

    @Test
    fun aBundleMayBeginEveryConversation() {
        val folder = createTempDir()
        assertEquals(null, shippedPrefix(folder))
        File(folder, "prefix.txt").writeText("Be brief.")
        assertEquals("Be brief.", shippedPrefix(folder))
    }

    @Test
    fun nothingRunsAfterItWasClosed() {
        val model = NativeModel(bundle)
        model.close()
        model.close()
        for (use in listOf({ model.prefill(intArrayOf(1)) }, { model.decode(1) }, { model.reset() }, { model.adapter(null) }, { model.draft(null) }, { model.length }, { model.context })) {
            assertEquals("the model is closed", message { use() })
        }
    }

    private fun best(logits: FloatArray): Int = logits.indices.maxBy { logits[it] }!!

    private fun message(block: () -> Unit): String? = try {
        block()
        null
    } catch (error: IllegalStateException) {
        error.message
    }
}
