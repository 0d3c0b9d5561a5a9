package com.example.sample

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.fail
import org.junit.Test

/** The kit's NativeModel over a compiled model and its runtime. What comes out is compared with the runtime alone. */
class RealModelTest {
    private val bundle = File(System.getProperty("bundle"))
    private val prompt = numbers("prompt").toIntArray()
    private val expected = numbers("tokens")

    @Test
    fun greedyTokensAreThoseOfTheRuntime() = NativeModel(bundle, "{\"max_tokens\": 64}").use { model ->
        assertEquals(64, model.context)
        for (round in 1..2) {
            assertEquals(0, model.length)
            assertEquals(expected, greedy(model))
            assertEquals(prompt.size + expected.size - 1, model.length)
            model.reset()
            model.draft(bundle)
        }
    }

    @Test
    fun aConversationGoesOnFromItsFile() {
        val file = File(createTempDir(), "talk")
        NativeModel(bundle).use { model ->
            model.prefill(prompt)
            model.save(file, "said")
        }
        NativeModel(bundle, "{\"max_tokens\": 64}").use { model ->
            assertEquals("said", model.load(file))
            assertEquals(prompt.size, model.length)
            val next = model.decode(expected[0])
            model.reset()
            model.prefill(prompt)
            assertEquals(next.toList(), model.decode(expected[0]).toList())
            file.writeBytes(file.readBytes().dropLast(1).toByteArray())
            assertEquals("$file: is cut", message { model.load(file) })
        }
    }

    @Test
    fun errorsCarryTheRuntimesText() {
        assertEquals("/nowhere/model.json: No such file or directory", message { NativeModel(File("/nowhere")) })
        NativeModel(bundle).use { model ->
            assertEquals("token -1 is not within 0 to ${model.vocabulary - 1}", message { model.decode(-1) })
            assertEquals("a prefill of no tokens", message { model.prefill(intArrayOf()) })
            assertEquals("/nowhere/model.json: No such file or directory", message { model.draft(File("/nowhere")) })
            assertEquals(0, model.length)
            assertEquals(expected, greedy(model))
        }
    }

    private fun greedy(model: NativeModel): List<Int> {
        val sampler = Sampler()
        val made = mutableListOf(sampler.choose(model.prefill(prompt)))
        while (made.size < expected.size) made += sampler.choose(model.decode(made.last()))
        return made
    }

    private fun numbers(property: String): List<Int> = System.getProperty(property).split(",").map { it.toInt() }

    private fun message(block: () -> Unit): String? = try {
        block()
        fail("no exception")
        null
    } catch (error: IllegalStateException) {
        error.message
    }
}
