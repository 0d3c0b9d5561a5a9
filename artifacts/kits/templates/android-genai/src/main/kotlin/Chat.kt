package «package»

import android.content.Context
import java.io.Closeable
import java.io.File
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn

/**
 * A conversation with the model in [bundle], a folder. It may be used from every coroutine: answers come one after the other, in
 * the order in which they are collected. [close] frees the memory.
 *
 * Opening reads every file the first time (a second or so a gigabyte): do it off the main thread. [progress] gets the part of
 * the bytes that was read, from 0 to 1. Throws [DamagedBundleException] for a bundle that is not whole, and
 * [NotEnoughMemoryException] before the system would end the app.
 */
class Chat(
    context: Context,
    bundle: File,
    sampling: Sampling = Sampling(),
    system: String? = null,
    progress: (Double) -> Unit = {}
) : Closeable {
    private val model: GenAIModel
    private val conversation = Conversation(ModelInfo.rules, ModelInfo.chat, system)
    private val turns = Turns(::free)

    init {
        Integrity.check(bundle, ModelInfo.MANIFEST_SHA256, File(context.noBackupFilesDir, "pocketphi-checked"), progress)
        MemoryReport.require(context, ModelInfo.MEMORY_BYTES)
        model = GenAIModel(bundle, ModelInfo.CONTEXT, sampling)
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
            model.createStream().use { stream ->
                val grounded = conversation.ground(text, documents, model::tokenize).also { sources(it.passages) }
                conversation.send(grounded.message, limit, model, model::tokenize, stream::decode) { piece ->
                    turns.checkOpen()
                    emit(piece)
                }
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

    /** Ends the answer that is under way; the memory is freed when it has ended. */
    override fun close() = turns.close()

    private fun free() = model.close()
}
