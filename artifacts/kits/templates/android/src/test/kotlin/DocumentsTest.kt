package «package»

import java.io.File
import java.util.Base64
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** Search in documents against vectors that pocketphi's own tests share. */
class DocumentsTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val vectors = JSONObject(javaClass.getResource("/vectors.json").readText()).getJSONObject("documents")

    @Test
    fun words() = each("words") { case ->
        assertEquals(case.getString("spaced"), Words.spaced(case.getString("text")))
        assertEquals(texts(case.getJSONArray("words")), Words.of(case.getString("text")))
    }

    @Test
    fun searches() = Documents(index()).use { documents ->
        each("searches") { case ->
            val found = documents.search(case.getString("question"), case.getInt("most"))
            assertEquals(case.getString("question"), passages(case.getJSONArray("found")), found)
        }
    }

    @Test
    fun questionsWithPassages() = Documents(index()).use { documents ->
        each("grounded") { case ->
            val said = messages(case.getJSONArray("said"))
            val made = Grounded.of(documents, case.getString("question"), said, case.getInt("context")) { all ->
                all.sumBy { 7 + it.content.toByteArray().size }
            }
            assertEquals(case.getString("message"), made.message)
            assertEquals(passages(case.getJSONArray("passages")), made.passages)
            assertEquals(messages(case.getJSONArray("messages")), made.messages)
        }
    }

    @Test
    fun whatIsNoIndexIsRefused() {
        val damaged = folder.newFile("damaged").apply { writeBytes(index().readBytes().copyOf(20_000)) }
        val other = folder.newFile("other").apply { writeText("no database at all, but long enough to look like one") }
        for (file in listOf(damaged, other, File(folder.root, "none"))) {
            try {
                Documents(file).use { it.search("harbour ferry") }
                fail("$file was taken")
            } catch (error: BadIndexException) {
                assertTrue(error.message!!.startsWith("$file: "))
            }
        }
    }

    private fun index() = File(folder.root, "index").apply { writeBytes(Base64.getDecoder().decode(vectors.getString("index"))) }

    private fun each(name: String, check: (JSONObject) -> Unit) {
        val cases = vectors.getJSONArray(name)
        assertTrue(cases.length() > 0)
        for (i in 0 until cases.length()) check(cases.getJSONObject(i))
    }

    private fun texts(all: JSONArray) = (0 until all.length()).map { all.getString(it) }

    private fun passages(all: JSONArray) = (0 until all.length()).map { texts(all.getJSONArray(it)) }
        .map { (file, place, heading, text) -> Passage(file, place, heading, text) }

    private fun messages(all: JSONArray) = (0 until all.length()).map { texts(all.getJSONArray(it)) }
        .map { (role, content) -> Message(role, content) }
}
