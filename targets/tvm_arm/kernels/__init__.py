"""TIR kernels of the TVM target, one file for each kind; `lower.py` asks for them."""
