"""One run from start to end: train, export the adapter, evaluate, report progress.

May import: the top-level modules and the packages up to `evaluation`.
"""
