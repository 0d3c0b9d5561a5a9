"""An edge compiler for Phi-3 models: one graph, one set of int4 weights, verified artifacts for three runtimes.

Its stages are the folders at the root of the repository. Here each has a link: `pocketphi.graph` is `graph/`, and so on.
"""

from pocketphi.compiler import __version__

__all__ = ["__version__"]
