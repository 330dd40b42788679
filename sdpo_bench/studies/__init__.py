"""Studies of the methods' assumptions, one module each.

May import: the top-level modules and the packages up to `sweep`.
"""
