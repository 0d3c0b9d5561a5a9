"""Core ML: an `.mlpackage` for iPhone and Mac, and an interpreter that runs the saved package on any host."""
