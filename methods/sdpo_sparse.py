"""SDPO without its dense rewards: the paper's sparse-reward ablation (arXiv 2411.11727)."""

from sdpo_bench.methods.sdpo import SDPO


class SDPOSparse(SDPO):
    """SDPO learning from the final reward alone (ablation: one reward query a trajectory)."""

    formula = "sdpo with one thing changed: the final reward alone"
    source = "arXiv 2411.11727, ablation"
    variant_of = "sdpo"
    fixed = {"method.reward": "sparse"}
