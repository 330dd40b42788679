"""What studies share: their contract, their trainings and measurements.

May import: the top-level modules and the packages up to `sweep`.
"""
