"""Denoising as a Markov decision process: sampler families, trajectories, and log-probabilities of stored steps.

May import: the top-level modules and the packages up to `models`.
"""
