package androidx.compose.material3

import androidx.compose.foundation.layout.RowScope
import androidx.compose.runtime.Composable
import androidx.compose.ui.Modifier

class Color

class ColorScheme(val error: Color)

object MaterialTheme {
    val colorScheme: ColorScheme @Composable get() = ColorScheme(Color())
}

@Composable
fun Button(onClick: () -> Unit, modifier: Modifier = Modifier, enabled: Boolean = true, content: @Composable RowScope.() -> Unit) {}

@Composable
fun LinearProgressIndicator(progress: () -> Float, modifier: Modifier = Modifier) {}

@Composable
fun Text(text: String, modifier: Modifier = Modifier, color: Color = Color()) {}

@Composable
fun TextField(value: String, onValueChange: (String) -> Unit, modifier: Modifier = Modifier) {}
