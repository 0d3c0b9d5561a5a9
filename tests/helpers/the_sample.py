"""How the tests compile the sample: all in the same way, so that its weights are quantized once."""

SAMPLE_TOKENS = 1024
"""Of the calibration text: a quarter of what a user gets, in two thirds of the time. `make demo` takes all of it."""
