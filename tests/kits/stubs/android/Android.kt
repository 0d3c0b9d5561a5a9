// What the kits use of Android, from https://developer.android.com/reference: interfaces only.
package android.content

import java.io.File

abstract class Context {
    abstract val noBackupFilesDir: File

    abstract fun getSystemService(name: String): Any?

    companion object {
        const val ACTIVITY_SERVICE = "activity"
    }
}
