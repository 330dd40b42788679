"""Rewards of images and of denoising steps: queries, weighted sums, dense prediction, the score cache.

May import: the top-level modules and the packages up to `rollout`.
"""
