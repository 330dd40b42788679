"""Many runs: suites, plans, and executors on this machine or on Ray.

May import: the top-level modules and the packages up to `results`.
"""
