"""PEFT adapters that are merged into a checkpoint while its weights stream.

`named.py` is an adapter as a user names it; `settings.py` reads `adapter_config.json`; `modules.py` finds the modules that it
is for; `adapter.py` opens the folder; `changes.py` has what can be done to rows of a weight; `merged.py` is the checkpoint.
"""
