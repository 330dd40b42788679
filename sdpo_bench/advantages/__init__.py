"""From rewards to what the loss sees: returns, normalisation, the learning signal and the metrics of an epoch.

May import: the top-level modules and the packages up to `runs`.
"""
