"""The command line: options, progress, exit codes. Thin, with late imports.

May import: everything.
"""
