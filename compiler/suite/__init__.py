"""Suites of questions, prompts and texts: what a model scores on them, and whether it still behaves as another one."""
