package «package»

import java.io.File
import java.security.MessageDigest
import org.json.JSONException
import org.json.JSONObject

/** A bundle that is not whole, or not the one that this app was made for. */
class DamagedBundleException(message: String) : Exception(message)

/** Compares a bundle with its manifest, and the manifest with the SHA-256 that this app was made with. */
object Integrity {
    private const val MANIFEST = "manifest.json"
    private const val SIGNATURE = "manifest.sig"
    private val SEAL = Regex(",\n \"sha256\": \"([0-9a-f]{64})\"\n\\}\n")
    private const val SEAL_BYTES = 82

    /**
     * Checks every file's size, and its content unless [memory], a file outside the bundle, says that this was done before.
     *
     * @param manifestSha256 of the one manifest that is accepted; null accepts any that is whole
     * @param progress gets the part of the bytes that were read, from 0 to 1, where the content is checked
     */
    fun check(bundle: File, manifestSha256: String?, memory: File? = null, progress: (Double) -> Unit = {}) {
        val manifest = File(bundle, MANIFEST)
        if (!manifest.isFile) throw DamagedBundleException("$MANIFEST is missing")
        val text = manifest.readBytes()
        val digest = sha256(text)
        if (manifestSha256 != null && digest != manifestSha256) {
            throw DamagedBundleException("$MANIFEST is not of the bundle that this app was made for")
        }
        if (!isSealed(text)) throw DamagedBundleException("$MANIFEST was changed")
        val seen = memory != null && memory.isFile && memory.readText() == digest
        checkFiles(bundle, text, !seen, progress)
        if (!seen) memory?.writeText(digest)
    }

    /** Whether a manifest ends with the SHA-256 of what stands before its last line. */
    internal fun isSealed(text: ByteArray): Boolean {
        if (text.size < SEAL_BYTES) return false
        val head = text.copyOf(text.size - SEAL_BYTES)
        val seal = SEAL.matchEntire(String(text, head.size, SEAL_BYTES, Charsets.ISO_8859_1)) ?: return false
        return seal.groupValues[1] == sha256(head)
    }

    private fun checkFiles(bundle: File, manifest: ByteArray, contents: Boolean, progress: (Double) -> Unit) {
        val files = try {
            JSONObject(String(manifest)).getJSONObject("files")
        } catch (error: JSONException) {
            throw DamagedBundleException("$MANIFEST names no files")
        }
        val held = bundle.walkTopDown().filter { it.isFile }.map { it.relativeTo(bundle).invariantSeparatorsPath }
        held.firstOrNull { it != MANIFEST && it != SIGNATURE && !files.has(it) }?.let {
            throw DamagedBundleException("$it is not part of the bundle")
        }
        val all = files.keys().asSequence().sumByDouble { files.getJSONObject(it).getLong("bytes").toDouble() }
        var read = 0L
        for (name in files.keys()) {
            val file = File(bundle, name)
            val entry = files.getJSONObject(name)
            if (name.split('/').contains("..")) throw DamagedBundleException("$name lies outside the bundle")
            if (!file.isFile) throw DamagedBundleException("$name is missing")
            if (file.length() != entry.getLong("bytes")) {
                throw DamagedBundleException("$name has ${file.length()} bytes, not ${entry.getLong("bytes")}")
            }
            if (!contents) continue
            val digest = sha256(file) { count ->
                read += count
                progress(read / all)
            }
            if (digest != entry.getString("sha256")) throw DamagedBundleException("$name was changed")
        }
    }

    private fun sha256(data: ByteArray): String = hex(MessageDigest.getInstance("SHA-256").digest(data))

    private fun sha256(file: File, progress: (Int) -> Unit): String {
        val digest = MessageDigest.getInstance("SHA-256")
        file.inputStream().use { input ->
            val buffer = ByteArray(1 shl 20)
            while (true) {
                val count = input.read(buffer)
                if (count < 0) break
                digest.update(buffer, 0, count)
                progress(count)
            }
        }
        return hex(digest.digest())
    }

    private fun hex(bytes: ByteArray): String = bytes.joinToString("") { "%02x".format(it) }
}
