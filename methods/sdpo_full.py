"""SDPO with every step's reward queried instead of predicted from three (arXiv 2411.11727, upper line)."""

from sdpo_bench.methods.sdpo import SDPO


class SDPOFull(SDPO):
    """SDPO with a reward query at every denoising step (ablation: T reward queries a trajectory)."""

    formula = "sdpo with one thing changed: a reward queried at every step"
    source = "arXiv 2411.11727, ablation"
    variant_of = "sdpo"
    fixed = {"method.reward": "full"}
