"""The driver: options, the compile flow, verification, measuring, and the command line."""

__version__ = "0.1.0"
