"""The tables of a report, as data.

May import: the top-level modules and the packages up to `studies`.
"""
