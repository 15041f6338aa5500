"""Mutated inputs for zsad: each has to end in one clear line or in a right answer. Run by `tools/fuzz.py`."""
