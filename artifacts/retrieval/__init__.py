"""Search in one's own documents: passages of a folder in one SQLite file, and the best of them in front of a question.

Apps search the same file by the same rules: `words.py`, `index.py` and `prompt.py` are what their kits do too.
"""
