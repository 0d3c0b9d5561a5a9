"""What a user may choose of quantization. Without imports: the command line reads it before torch is loaded."""

BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes, beside whole rows."""

FILE_BLOCK = 32
"""Of what `--recipe keep` does not take over, as that of GGUF files."""


GROUPS = (1, 2, 4, 8, 16, 32, 64)
"""Rows that may share a lookup table."""
TABLE_BLOCKS = (32, 64)
"""Columns that may share one too, beside whole rows."""
