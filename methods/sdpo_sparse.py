"""SDPO without its dense rewards: the paper's sparse-reward ablation (arXiv 2411.11727)."""

from sdpo_bench.methods.sdpo import SDPO


class SDPOSparse(SDPO):
    """SDPO learning from the final reward alone (ablation: one reward query a trajectory)."""

    variant_of = "sdpo"
    fixed = {"method.reward": "sparse"}
