"""Scoring checkpoints and the base model at any number of denoising steps.

May import: the top-level modules and the packages up to `training`.
"""
