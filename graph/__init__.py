"""The front of the compiler: checkpoints, the traced `Program`, and the `edge::` operator vocabulary."""
