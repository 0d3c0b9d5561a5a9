"""Choosing the kernels' schedules: by a board, by this machine, or by a model of a core that is not at hand."""
