package androidx.sqlite

interface SQLiteStatement {
    fun bindText(index: Int, value: String)
    fun step(): Boolean
    fun getText(index: Int): String
    fun getLong(index: Int): Long
    fun getDouble(index: Int): Double
    fun close()
}

interface SQLiteConnection {
    fun prepare(sql: String): SQLiteStatement
    fun close()
}
