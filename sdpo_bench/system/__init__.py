"""The operating system's side of a run: files, locks, signals, processes, time-outs, text on a terminal.

May import: the top-level modules.
"""
