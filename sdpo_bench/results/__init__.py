"""What a results folder holds: runs, suites, studies, and which of them may be compared.

May import: the top-level modules and the packages up to `statistics`.
"""
