"""A run on disk: its folder, its record, the digests of its inputs, its adapter.

May import: the top-level modules and the packages up to `config`.
"""
