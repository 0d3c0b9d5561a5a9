"""Block sizes of the int4 form; apart from it, because the command line needs them without torch."""

BLOCKS = (16, 32, 64, 128, 256)
"""Weights along K that share a scale."""
