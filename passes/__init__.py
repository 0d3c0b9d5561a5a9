"""Graph → graph, one file a pass. `compiler/pipeline.py` lists them in order."""
