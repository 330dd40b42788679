"""What a run will cost before it starts: time, memory, and the measured speed of this machine.

May import: the top-level modules and the packages up to `running`.
"""
