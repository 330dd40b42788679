"""The Python API: five functions for scripts and notebooks, offered as ``sdpo_bench.run`` and so on.

May import: the top-level modules and the packages up to `doctor`.
"""
