package com.example.sample

import android.app.ActivityManager
import android.content.Context
import java.io.File
import kotlin.coroutines.Continuation
import kotlin.coroutines.EmptyCoroutineContext
import kotlin.coroutines.startCoroutine
import kotlinx.coroutines.flow.FlowCollector
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Test

/** The JNI code and the conversation over it, with `toy_runtime.c` in place of a model and characters for tokens. */
class NativeTest {
    private val bundle = File(System.getProperty("bundle"))

    private class Phone(private val free: Long) : Context() {
        override val noBackupFilesDir = createTempDir()

        override fun getSystemService(name: String): Any? = object : ActivityManager() {
            override fun getMemoryInfo(outInfo: MemoryInfo) {
                outInfo.availMem = free
            }
        }
    }

    @Test
    fun callsReachTheRuntime() = NativeModel(bundle).use { model ->
        assertEquals(256, model.vocabulary)
        assertEquals(2048, model.context)
        assertEquals('H'.toInt(), best(model.prefill(intArrayOf(1, 2, 3))))
        assertEquals('i'.toInt(), best(model.decode('H'.toInt())))
        assertEquals(4, model.length)
        model.reset()
        assertEquals(0, model.length)
    }

    @Test
    fun errorsAreExceptions() {
        assertEquals("/nowhere: no model", message { NativeModel(File("/nowhere")) })
        NativeModel(bundle).use { model ->
            assertEquals("0 tokens", message { model.prefill(intArrayOf()) })
            assertEquals("token -1", message { model.decode(-1) })
        }
    }

    @Test
    fun aConversation() = Chat(Phone(1L shl 40), bundle).use { chat ->
        val first = ModelInfo.chat.render(listOf(Message("user", "Hello"))).length
        assertEquals("Hi $first!".map { it.toString() }, collect(chat, "Hello"))
        val messages = listOf(Message("user", "Hello"), Message("assistant", "Hi $first!"), Message("user", "And?"))
        val second = ModelInfo.chat.render(messages).length
        assertEquals("Hi $second!".map { it.toString() }, collect(chat, "And?"))
        assertEquals(listOf("H", "i"), collect(chat, "More", limit = 2))
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
        Chat(Phone(1L shl 40), createTempDir().apply { bundle.copyRecursively(this); resolve("config.json").appendText(" ") })
        fail()
    } catch (error: DamagedBundleException) {
        assertTrue(error.message!!.startsWith("config.json has "))
    }

    private fun collect(chat: Chat, text: String, limit: Int = 512): List<String> {
        val pieces = mutableListOf<String>()
        var failure: Throwable? = null
        val body: suspend () -> Unit = {
            chat.send(text, limit).collect(object : FlowCollector<String> {
                override suspend fun emit(value: String) {
                    pieces += value
                }
            })
        }
        body.startCoroutine(object : Continuation<Unit> {
            override val context = EmptyCoroutineContext

            override fun resumeWith(result: Result<Unit>) {
                failure = result.exceptionOrNull()
            }
        })
        failure?.let { throw it }
        return pieces
    }

    private fun best(logits: FloatArray): Int = logits.indices.maxBy { logits[it] }!!

    private fun message(block: () -> Unit): String? = try {
        block()
        null
    } catch (error: IllegalStateException) {
        error.message
    }
}
