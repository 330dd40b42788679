"""Checks of this machine, and conformance checks of plugins.

May import: the top-level modules and the packages up to `reporting`.
"""
