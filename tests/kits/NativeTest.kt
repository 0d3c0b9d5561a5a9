package com.example.sample

import java.io.File
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
    }

    @Test
    fun errorsAreExceptions() {
        assertEquals("/nowhere: no model", message { NativeModel(File("/nowhere")) })
        NativeModel(bundle).use { model ->
            assertEquals("0 tokens", message { model.prefill(intArrayOf()) })
            assertEquals("token -1", message { model.decode(-1) })
            assertEquals("no adapter", message { model.adapter("none") })
        }
    }

    @Test
    fun nothingRunsAfterItWasClosed() {
        val model = NativeModel(bundle)
        model.close()
        model.close()
        for (use in listOf({ model.prefill(intArrayOf(1)) }, { model.decode(1) }, { model.reset() }, { model.adapter(null) }, { model.length }, { model.context })) {
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
