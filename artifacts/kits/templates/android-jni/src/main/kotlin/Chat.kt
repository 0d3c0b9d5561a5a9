package «package»

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer
import android.content.Context
import java.io.Closeable
import java.io.File
import java.nio.file.Paths
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn

/**
 * A conversation with the model in [bundle], a folder. It may be used from every coroutine: answers come one after the other, in
 * the order in which they are collected. [close] frees the memory.
 *
 * Opening reads every file the first time (a second or so a gigabyte): do it off the main thread. [progress] gets the part of
 * the bytes that was read, from 0 to 1. Without a [system] message, the conversation begins with the prefix that the bundle ships,
 * if any: what the model computes of it is read from a file. Throws [DamagedBundleException] for a bundle that is not whole, and
 * [NotEnoughMemoryException] before the system would end the app.
 */
class Chat(
    context: Context,
    bundle: File,
    private val sampler: Sampler = Sampler(),
    system: String? = null,
    progress: (Double) -> Unit = {}
) : Closeable {
    private val model: NativeModel
    private val tokenizer: HuggingFaceTokenizer
    private val conversation: Conversation
    private val turns = Turns(::free)

    init {
        Integrity.check(bundle, ModelInfo.MANIFEST_SHA256, File(context.noBackupFilesDir, "pocketphi-checked"), progress)
        MemoryReport.require(context, ModelInfo.MEMORY_BYTES)
        conversation = Conversation(ModelInfo.rules, ModelInfo.chat, system ?: shippedPrefix(bundle))
        tokenizer = HuggingFaceTokenizer.newInstance(Paths.get(bundle.path, "tokenizer.json"))
        model = try {
            NativeModel(bundle)
        } catch (error: IllegalStateException) {
            tokenizer.close()
            throw error
        }
    }

    /**
     * Answers [text] in at most [limit] tokens. The text comes in pieces, as it is made; collecting runs the model.
     *
     * A message waits until the answers before it have ended. One that is too long throws [MessageTooLongException], and the
     * conversation goes on as before it. Where an answer was cancelled or failed, the conversation goes on after what was given
     * out of it. After [close] this throws IllegalStateException.
     *
     * With [documents] the model reads their best passages for [text] before it answers; [sources] gets these first.
     */
    fun send(
        text: String,
        limit: Int = 512,
        documents: Documents? = null,
        sources: (List<Passage>) -> Unit = {}
    ): Flow<String> = flow<String> {
        turns.run {
            val stream = TextStream(this@Chat::decode)
            val grounded = conversation.ground(text, documents, this@Chat::tokenize).also { sources(it.passages) }
            conversation.send(grounded.message, limit, engine, this@Chat::tokenize, stream::step) { piece ->
                turns.checkOpen()
                emit(piece)
            }
        }
    }.flowOn(Dispatchers.Default)

    /** Begins a new conversation with the same system message, after the answers that are under way. */
    suspend fun reset() = turns.run { conversation.reset() }

    /**
     * Switches an adapter of the bundle on by its name, none for null, and begins a new conversation, after the answers that are
     * under way. The model stays loaded.
     */
    suspend fun adapt(name: String?) = turns.run {
        model.adapter(name)
        conversation.reset()
    }

    /**
     * Lets the model in a second bundle guess what comes next, none for null, after the answers that are under way: a smaller one
     * with the same tokenizer, compiled for the same phone. Answers stay the same, word for word, and come faster where it is often
     * right. It takes memory of its own. Throws IllegalStateException for a bundle that cannot; then nothing changes.
     */
    suspend fun draft(bundle: File?) = turns.run { model.draft(bundle) }

    /**
     * Keeps the conversation in a file, after the answers that are under way: [load] goes on there, at once, also in a later run of
     * the app. Keep it with the app's private data. Throws IllegalStateException where it cannot be written.
     */
    suspend fun save(file: File) = turns.run {
        if (conversation.seen.isEmpty()) model.reset() // a call failed: what the cache has is not known
        model.save(file, conversation.written())
    }

    /**
     * Goes on with the conversation in a file of [save], in place of this one, after the answers that are under way. Throws
     * IllegalStateException for a file of another bundle or adapter, or one that is not whole; then nothing changes.
     */
    suspend fun load(file: File) = turns.run { conversation.read(model.load(file)) }

    /** Ends the answer that is under way; the memory is freed when it has ended. */
    override fun close() = turns.close()

    private val engine = object : Engine {
        override fun run(calls: List<Call>, tokens: List<Int>): Int? {
            var logits = FloatArray(0)
            for (call in calls) {
                if (call.start == 0) model.reset()
                val part = tokens.subList(call.start, call.start + call.count).toIntArray()
                logits = if (call.function == "decode") model.decode(part[0]) else model.prefill(part)
            }
            return sampler.choose(logits)
        }
    }

    private fun tokenize(text: String): List<Int> = tokenizer.encode(text, false, false).ids.map { it.toInt() }

    private fun decode(tokens: List<Int>): String = tokenizer.decode(tokens.map { it.toLong() }.toLongArray(), true)

    private fun free() {
        tokenizer.close()
        model.close()
    }
}
