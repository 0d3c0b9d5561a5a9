"""TVM for ARM: our own int4 kernels in a native library, a small C runtime around it."""
