plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "«package»"
    compileSdk = 35

    defaultConfig {
        minSdk = 28
        ndk { abiFilters += "arm64-v8a" }
    }
<% if runtime == "tvm" %>
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
<% endif %>
}

dependencies {
<% if runtime == "tvm" %>
    implementation("ai.djl.huggingface:tokenizers:0.33.0")
    runtimeOnly("ai.djl.android:tokenizer-native:0.33.0")
<% else %>
    // not on Maven: from the releases of github.com/microsoft/onnxruntime-genai, see the README
    implementation(files("libs/onnxruntime-genai-android.aar"))
    implementation("com.microsoft.onnxruntime:onnxruntime-android:«ort_version»")
<% endif %>
    implementation("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.9.0")
    implementation("androidx.sqlite:sqlite-bundled:2.5.1") // with full-text search, which Android's own SQLite lacks
    testImplementation("junit:junit:4.13.2")
    testImplementation("org.json:json:20240303")
    testImplementation("androidx.sqlite:sqlite-bundled-jvm:2.5.1")
}
