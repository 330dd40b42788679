"""One module a command.

May import: everything but the entry point.
"""
