package androidx.sqlite.driver.bundled

import androidx.sqlite.SQLiteConnection
import androidx.sqlite.SQLiteStatement
import java.sql.Connection
import java.sql.DriverManager
import java.sql.PreparedStatement
import java.sql.ResultSet
import java.sql.SQLException

const val SQLITE_OPEN_READONLY = 1
const val SQLITE_OPEN_FULLMUTEX = 65536

/** SQLite itself, by Debian's JDBC. */
class BundledSQLiteDriver {
    fun open(fileName: String, flags: Int): SQLiteConnection {
        check(flags == SQLITE_OPEN_READONLY or SQLITE_OPEN_FULLMUTEX)
        return Opened(ours { DriverManager.getConnection("jdbc:sqlite:file:$fileName?mode=ro") })
    }
}

private class Opened(private val connection: Connection) : SQLiteConnection {
    override fun prepare(sql: String): SQLiteStatement = Prepared(ours { connection.prepareStatement(sql) })
    override fun close() = connection.close()
}

private class Prepared(private val statement: PreparedStatement) : SQLiteStatement {
    private var rows: ResultSet? = null

    override fun bindText(index: Int, value: String) = statement.setString(index, value)

    override fun step(): Boolean = ours {
        if (rows == null && !statement.execute()) return@ours false
        val found = rows ?: statement.resultSet.also { rows = it }
        found.next()
    }

    override fun getText(index: Int): String = ours { rows!!.getString(index + 1) }
    override fun getLong(index: Int): Long = ours { rows!!.getLong(index + 1) }
    override fun getDouble(index: Int): Double = ours { rows!!.getDouble(index + 1) }
    override fun close() = statement.close()
}

/** An unchecked exception, as the real one is. */
private fun <T> ours(work: () -> T): T = try {
    work()
} catch (error: SQLException) {
    throw RuntimeException(error)
}
