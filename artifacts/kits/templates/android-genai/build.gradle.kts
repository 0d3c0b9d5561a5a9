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
}

dependencies {
    // not on Maven: from the releases of github.com/microsoft/onnxruntime-genai, see the README
    implementation(files("libs/onnxruntime-genai-android.aar"))
    implementation("com.microsoft.onnxruntime:onnxruntime-android:«ort_version»")
    implementation("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.9.0")
    testImplementation("junit:junit:4.13.2")
    testImplementation("org.json:json:20240303")
}
