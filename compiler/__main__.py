"""`python -m pocketphi.compiler` is the console script `pocketphi`."""

import sys

from pocketphi.compiler.start import entry

sys.exit(entry())
