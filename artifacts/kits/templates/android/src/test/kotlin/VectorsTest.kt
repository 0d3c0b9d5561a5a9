package «package»

import java.io.File
import java.security.MessageDigest
import java.util.Base64
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** The logic of this module against vectors that pocketphi's own tests share. */
class VectorsTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val vectors = JSONObject(javaClass.getResource("/vectors.json").readText())

    @Test
    fun chatTemplate() = each("chat") { case ->
        val messages = case.getJSONArray("messages").arrays().map { Message(it.getString(0), it.getString(1)) }
        assertEquals(case.getString("prompt"), ModelInfo.chat.render(messages))
    }

    @Test
    fun calls() = each("calls") { case ->
        val expected = case.getJSONArray("calls").arrays().map { Call(it.getString(0), it.getInt(1), it.getInt(2)) }
        assertEquals(expected, rules(case).calls(case.ints("seen"), case.ints("tokens")))
    }

    @Test
    fun answers() = each("answers") { case ->
        val rules = rules(case)
        val made = mutableListOf<Int>()
        var end: End? = null
        for (token in case.ints("chosen")) {
            end = rules.end(token, made.size + 1, case.getInt("prompt"), case.getInt("limit"))
            if (end != End.STOP) made += token
            if (end != null) break
        }
        assertEquals(case.ints("made"), made)
        assertTrue(case.getString("end").equals(end.toString(), ignoreCase = true))
    }

    @Test
    fun conversations() {
        val all = vectors.getJSONObject("conversations")
        val format = all.getJSONObject("format")
        val roles = format.getJSONObject("roles").let { roles ->
            roles.keys().asSequence().associateWith { role ->
                roles.getJSONArray(role).let { Pair(it.getString(0), it.getString(1)) }
            }
        }
        val strips = format.getJSONArray("strips").texts().toSet()
        val chat = ChatFormat(format.getString("begin"), format.getString("default"), roles, format.getString("answer"), strips)
        for (case in all.getJSONArray("cases").objects()) {
            val rules = rules(all.getJSONArray("rules").getJSONObject(case.getInt("rules")))
            val talk = ToyTalk(Conversation(rules, chat, if (case.isNull("system")) null else case.getString("system")))
            for (group in case.getJSONArray("groups").arrays()) {
                val steps = group.objects()
                assertEquals(case.getString("name"), steps.map(::outcome), talk.take(steps))
            }
        }
    }
<% if runtime == "tvm" %>

    @Test
    fun sampling() = each("sampling") { case ->
        val sampler = Sampler(case.getDouble("temperature"), case.getInt("top_k"), case.getDouble("top_p"), case.getLong("seed"))
        val logits = case.getJSONArray("logits").doubles().map { it.toFloat() }.toFloatArray()
        assertEquals(case.ints("tokens"), case.ints("tokens").map { sampler.choose(logits) })
    }

    @Test
    fun streaming() = each("stream") { case ->
        val bytes = case.getJSONArray("bytes").texts().map(::unhex)
        val stream = TextStream { ids -> // as with SentencePiece, a text loses a space that it begins with
            String(ids.map { bytes[it] }.fold(ByteArray(0)) { a, b -> a + b }).removePrefix(" ")
        }
        assertEquals(case.getJSONArray("texts").texts(), case.ints("tokens").map { stream.step(it) })
    }
<% endif %>

    @Test
    fun damageIsRefused() {
        val integrity = vectors.getJSONObject("integrity")
        val files = integrity.getJSONObject("files").let { all ->
            all.keys().asSequence().associateWith { Base64.getDecoder().decode(all.getString(it)) }
        }
        val pin = integrity.getString("sha256")
        assertNull(refusal(files, pin))
        assertNull(refusal(files, null))
        val refused = integrity.getJSONArray("refused").arrays()
        assertTrue(refused.size >= 1000)
        assertEquals(emptyList<JSONArray>(), refused.filter { refusal(damaged(files, it), null) == null })
        val forged = integrity.getJSONArray("forged").arrays()
        assertEquals(emptyList<JSONArray>(), forged.filter { refusal(damaged(files, it), pin) == null })
    }

    @Test
    fun contentsAreReadOnce() {
        val bundle = folder.newFolder()
        val memory = File(folder.root, "checked")
        val files = vectors.getJSONObject("integrity").getJSONObject("files")
        for (name in files.keys()) {
            File(bundle, name).apply { parentFile.mkdirs() }.writeBytes(Base64.getDecoder().decode(files.getString(name)))
        }
        Integrity.check(bundle, null, memory)
        val largest = bundle.walkTopDown().filter { it.isFile && it.name != "manifest.json" }.sortedBy { it.length() }.last()
        largest.writeBytes(ByteArray(largest.length().toInt()))
        Integrity.check(bundle, null, memory)
        memory.delete()
        assertEquals("${largest.relativeTo(bundle)} was changed", message { Integrity.check(bundle, null, memory) })
        assertTrue(!memory.exists())
    }

    private fun each(name: String, check: (JSONObject) -> Unit) {
        val cases = vectors.getJSONArray(name)
        assertTrue(cases.length() > 0)
        for (i in 0 until cases.length()) check(cases.getJSONObject(i))
    }

    private fun rules(case: JSONObject) = Rules(
        case.getInt("context"),
        case.getInt("chunk"),
        case.getInt("rows"),
        if (case.isNull("long_rope_after")) null else case.getInt("long_rope_after"),
        case.ints("stops").toSet(),
        case.getInt("ring")
    )

    private fun refusal(files: Map<String, ByteArray>, pin: String?): String? {
        val bundle = File(folder.root, "bundle").apply { deleteRecursively() }
        for ((name, data) in files) File(bundle, name).apply { parentFile.mkdirs() }.writeBytes(data)
        return message { Integrity.check(bundle, pin) }
    }

    private fun message(check: () -> Unit): String? = try {
        check()
        null
    } catch (error: DamagedBundleException) {
        error.message
    }

    private fun damaged(files: Map<String, ByteArray>, steps: JSONArray): Map<String, ByteArray> {
        val made = files.toMutableMap()
        for (step in steps.arrays()) {
            val name = step.optString(1)
            when (step.getString(0)) {
                "flip" -> made[name] = made.getValue(name).clone().also {
                    it[step.getInt(2)] = (it[step.getInt(2)].toInt() xor (1 shl step.getInt(3))).toByte()
                }
                "truncate" -> made[name] = made.getValue(name).copyOf(step.getInt(2))
                "remove" -> made.remove(name)
                "add" -> made[name] = step.getString(2).toByteArray()
                "swap" -> made[name] = made.put(step.getString(2), made.getValue(name))!!
                "write" -> made[name] = made.getValue(name).clone().also {
                    val text = step.getString(3).toByteArray()
                    text.copyInto(it, step.getInt(2))
                }
                "seal" -> made["manifest.json"] = sealed(made.getValue("manifest.json"))
                else -> error("unknown step $step")
            }
        }
        return made
    }

    private fun sealed(manifest: ByteArray): ByteArray {
        val head = manifest.copyOf(manifest.size - 82)
        val digest = MessageDigest.getInstance("SHA-256").digest(head).joinToString("") { "%02x".format(it) }
        return head + ",\n \"sha256\": \"$digest\"\n}\n".toByteArray()
    }

    private fun unhex(text: String): ByteArray = text.chunked(2).map { it.toInt(16).toByte() }.toByteArray()

    private fun outcome(step: JSONObject) = ToyTalk.Outcome(
        step.getJSONArray("pieces").texts(),
        if (step.isNull("error")) null else step.getString("error"),
        step.getJSONArray("messages").arrays().map { Message(it.getString(0), it.getString(1)) },
        step.ints("seen")
    )

    private fun JSONArray.objects(): List<JSONObject> = (0 until length()).map { getJSONObject(it) }

    private fun JSONArray.texts(): List<String> = (0 until length()).map { getString(it) }

    private fun JSONArray.arrays(): List<JSONArray> = (0 until length()).map { getJSONArray(it) }

    private fun JSONArray.doubles(): List<Double> = (0 until length()).map { getDouble(it) }

    private fun JSONObject.ints(name: String): List<Int> =
        getJSONArray(name).let { all -> (0 until all.length()).map { all.getInt(it) } }
}
