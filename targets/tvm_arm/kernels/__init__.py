"""TIR functions, written down to the vector: one for each kind of operator and instruction set."""
