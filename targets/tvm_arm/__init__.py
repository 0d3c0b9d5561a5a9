"""TVM for ARM: our own kernels in a native library, a small C runtime around it."""
