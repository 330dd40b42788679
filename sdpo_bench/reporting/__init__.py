"""Reports: figures and pages in every format, from a results folder alone.

May import: the top-level modules and the packages up to `studies`.
"""
