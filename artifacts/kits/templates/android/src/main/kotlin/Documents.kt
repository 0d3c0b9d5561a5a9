package «package»

import androidx.sqlite.SQLiteStatement
import androidx.sqlite.driver.bundled.BundledSQLiteDriver
import androidx.sqlite.driver.bundled.SQLITE_OPEN_FULLMUTEX
import androidx.sqlite.driver.bundled.SQLITE_OPEN_READONLY
import java.io.Closeable
import java.io.File
import kotlin.math.ln1p

/** A part of a document. [file] by its path, [place] in it, such as `lines 3-9`, [heading] with those above it. */
data class Passage(val file: String, val place: String, val heading: String, val text: String) {
    /** Where it stands, for people. */
    val source get() = listOf(file, place, heading).filter { it.isNotEmpty() }.joinToString(", ")
}

/** A file that is no index of documents, or is damaged. */
class BadIndexException(message: String, cause: Throwable? = null) : Exception(message, cause)

/**
 * The documents in an index that `pocketphi index` made, a file. It may be used from every thread.
 *
 * Passages are found by the words of a question: the first 40 by BM25 are put in the order of BM25 · c², where c is the part of
 * the question's words that a passage has, each weighted by how rare it is. Throws [BadIndexException], here and in [search].
 */
class Documents(private val index: File) : Closeable {
    private val database = ours {
        if (!index.isFile) throw BadIndexException("$index: no such file")
        BundledSQLiteDriver().open(index.path, SQLITE_OPEN_READONLY or SQLITE_OPEN_FULLMUTEX)
    }
    private val passages: Int

    init {
        try {
            passages = ours {
                rows("PRAGMA trusted_schema = OFF") { }
                rows("PRAGMA cell_size_check = ON") { }
                val application = rows("PRAGMA application_id") { it.getLong(0) }
                val about = rows("SELECT key, value FROM about LIMIT 100") { Pair(it.getText(0), it.getText(1)) }.toMap()
                if (application != listOf(«application»L) || about["format"] != "«index_format»") {
                    throw BadIndexException("$index: is no index of format «index_format»; make it with 'pocketphi index'")
                }
                about.getValue("passages").toInt()
            }
        } catch (error: BadIndexException) {
            database.close()
            throw error
        }
    }

    /** The best passages for a question, the best one first; a text that stands in several files comes once. */
    fun search(question: String, most: Int = «most_passages»): List<Passage> = ours {
        val asked = Words.of(question)
        val weights = telling(asked)
        val ranked = ranked(asked, weights.keys)
        val covered = ranked.mapValues { 0.0 }.toMutableMap()
        for ((word, weight) in weights) {
            for (row in having(word, ranked.keys)) covered[row] = covered.getValue(row) + weight
        }
        ranked.keys.sortedWith(compareBy({ -ranked.getValue(it) * covered.getValue(it) * covered.getValue(it) }, { it }))
            .asSequence().map(::passage).distinctBy { it.text }.take(most).toList()
    }

    override fun close() = database.close()

    /** Those of the words that tell passages apart, with their inverse document frequency; all where none does. */
    private fun telling(words: List<String>): Map<String, Double> {
        val limit = if (passages >= «few») passages / «common» else passages
        val counts = words.associateWith { count(it, limit + 1) }
        val kept = words.filter { counts.getValue(it) in 1..limit }
        return (if (kept.isEmpty()) words else kept).associateWith {
            ln1p((passages - counts.getValue(it) + 0.5) / (counts.getValue(it) + 0.5))
        }
    }

    private fun count(word: String, most: Int): Int =
        rows("SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT $most)", quoted(word)) { it.getLong(0).toInt() }
            .single()

    /** The first passages by BM25, with it. */
    private fun ranked(asked: List<String>, telling: Set<String>): Map<Long, Double> {
        val pairs = asked.zipWithNext().filter { (a, b) -> a in telling || b in telling }.map { (a, b) -> "$a $b" }
        val wanted = (telling + pairs).joinToString(" OR ", transform = ::quoted)
        if (wanted.isEmpty()) return emptyMap()
        val sql = "SELECT rowid, rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT «looked_at»"
        return rows(sql, wanted) { Pair(it.getLong(0), -it.getDouble(1)) }.toMap()
    }

    private fun having(word: String, rows: Set<Long>): List<Long> =
        rows("SELECT rowid FROM words WHERE words MATCH ? AND rowid IN (${rows.joinToString()})", quoted(word)) { it.getLong(0) }

    private fun passage(row: Long): Passage =
        rows("SELECT file, place, heading, text FROM passage WHERE id = $row") {
            Passage(it.getText(0), it.getText(1), it.getText(2), it.getText(3))
        }.single()

    private fun <T> rows(sql: String, argument: String? = null, take: (SQLiteStatement) -> T): List<T> {
        val statement = database.prepare(sql)
        try {
            if (argument != null) statement.bindText(1, argument)
            val found = mutableListOf<T>()
            while (statement.step()) found += take(statement)
            return found
        } finally {
            statement.close()
        }
    }

    private fun quoted(word: String) = "\"$word\""

    /** Whatever SQLite says of a file is a [BadIndexException]. */
    private fun <T> ours(work: () -> T): T = try {
        work()
    } catch (error: RuntimeException) {
        throw BadIndexException("$index: cannot be searched; make it again with 'pocketphi index'", error)
    }
}
