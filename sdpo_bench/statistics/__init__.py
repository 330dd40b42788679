"""From evaluation rows to estimates with intervals, tests and tables as data. No files but evaluation tables.

May import: the top-level modules and the packages up to `estimates`.
"""
