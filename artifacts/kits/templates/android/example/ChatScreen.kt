package com.example.app

import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.lazy.LazyColumn
import androidx.compose.foundation.lazy.items
import androidx.compose.material3.Button
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.Text
import androidx.compose.material3.TextField
import androidx.compose.runtime.Composable
import androidx.compose.runtime.LaunchedEffect
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateListOf
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.remember
import androidx.compose.runtime.rememberCoroutineScope
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.compose.ui.platform.LocalContext
import androidx.compose.ui.unit.dp
import «package».Chat
import «package».MemoryReport
import «package».MessageTooLongException
import java.io.File
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.catch
import kotlinx.coroutines.flow.launchIn
import kotlinx.coroutines.flow.onCompletion
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.withContext

/**
 * A conversation on one screen: progress of the first check, messages as they are made, a button to stop, memory in use.
 *
 * @param bundle the bundle's folder
 */
@Composable
fun ChatScreen(bundle: File) {
    val context = LocalContext.current
    val scope = rememberCoroutineScope()
    val lines = remember { mutableStateListOf<String>() }
    var chat by remember { mutableStateOf<Chat?>(null) }
    var checked by remember { mutableStateOf(0f) }
    var draft by remember { mutableStateOf("") }
    var answer by remember { mutableStateOf<Job?>(null) }
    var trouble by remember { mutableStateOf<String?>(null) }
    var used by remember { mutableStateOf(0L) }

    LaunchedEffect(bundle) {
        var opened: Chat? = null
        try {
            withContext(Dispatchers.IO) { opened = Chat(context, bundle) { part -> checked = part.toFloat() } }
            chat = opened
            while (true) {
                used = withContext(Dispatchers.IO) { MemoryReport.of(context).used }
                delay(1000)
            }
        } catch (left: CancellationException) {
            throw left
        } catch (error: Exception) {
            trouble = error.message
        } finally { // the screen is left
            chat = null
            opened?.close()
        }
    }

    fun send(to: Chat) {
        val text = draft
        draft = ""
        trouble = null
        lines += text
        lines += ""
        answer = to.send(text)
            .onEach { piece -> lines[lines.lastIndex] = lines.last() + piece }
            .onCompletion { answer = null }
            .catch { error ->
                if (error is MessageTooLongException) { // the conversation is as it was
                    repeat(2) { lines.removeAt(lines.lastIndex) }
                    draft = text
                }
                trouble = error.message
            }
            .launchIn(scope)
    }

    Column(Modifier.padding(16.dp)) {
        if (chat == null && trouble == null) LinearProgressIndicator(progress = { checked })
        LazyColumn(Modifier.weight(1f)) { items(lines) { line -> Text(line) } }
        trouble?.let { Text(it, color = MaterialTheme.colorScheme.error) }
        Row {
            TextField(value = draft, onValueChange = { draft = it }, modifier = Modifier.weight(1f))
            if (answer != null) {
                Button(onClick = { answer?.cancel() }) { Text("Stop") }
            } else {
                Button(onClick = { chat?.let(::send) }, enabled = chat != null && draft.isNotEmpty()) { Text("Send") }
            }
        }
        Text("${used / 1_000_000} MB in use")
    }
}
