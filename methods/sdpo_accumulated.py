"""SDPO without step-shuffled updates: gradients accumulated over whole trajectories (arXiv 2411.11727, ablation)."""

from sdpo_bench.methods.sdpo import SDPO


class SDPOAccumulated(SDPO):
    """SDPO with one optimiser step after whole trajectories (ablation: T times fewer optimiser steps)."""

    formula = "sdpo with one thing changed: minibatches outside and steps inside"
    source = "arXiv 2411.11727, ablation"
    variant_of = "sdpo"
    fixed = {"update.order": "accumulated"}
