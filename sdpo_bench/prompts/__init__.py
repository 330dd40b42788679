"""Prompt sets: the lists that ship with the package, text files, and the vocabulary of the embedded model.

May import: the top-level modules and the packages up to `plugins`.
"""
