"""Optimisation: the order of updates, the loss of a minibatch, the loop, checkpoints and exact resume.

May import: the top-level modules and the packages up to `advantages`.
"""
