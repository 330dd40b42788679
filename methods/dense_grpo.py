"""DenseGRPO, arXiv 2601.20218: GRPO whose step rewards are gains of the deterministic completion.

The paper compares each step's gain with those of the group at that step, so later gains do not count (gamma 0). It
also calibrates the noise of each step during training; here the noise is the schedule's.
"""

from sdpo_bench.methods.grpo import GRPO


class DenseGRPO(GRPO):
    """GRPO learning from what each step gains in the reward of its deterministic completion (DenseGRPO)."""

    formula = "as grpo, A of each step's gain in the reward of its deterministic completion"
    source = "arXiv 2601.20218 (the step-wise reward gain)"
    variant_of = "grpo"
    defaults = {**GRPO.defaults, "advantage.gamma": 0.0}
    fixed = {"method.reward": "completion"}
