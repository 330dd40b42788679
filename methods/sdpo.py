"""SDPO (stepwise diffusion policy optimisation), arXiv 2411.11727; official code ZiyiZhang27/sdpo.

Where each equation lives, in the order of one epoch (i = 0 is the noisiest denoising step):

1. Step reward prediction (paper: "latent similarity-based dense reward prediction"): ``choose_queries`` and
   ``predicted_rewards`` in ``sdpo_bench/scoring/dense_rewards.py``. r_i = sum_q R_q s_qi / sum_q s_qi over the first,
   last and anchor step.
2. Discounted returns and their normalisation (paper: "stepwise advantage estimates"): ``discounted_returns`` and
   ``Normaliser`` in ``sdpo_bench/advantages/normalise.py``. G_i = r_i + gamma G_{i+1};
   A_i = (G_i - mean) / (std + 1e-6), with the mean and standard deviation of one prompt at one step; of all prompts of
   the batch at that step until the prompt's buffer holds ``min_count`` returns, as in the official code.
3. Order of updates (paper: "step-shuffled gradient updates"): ``windows`` in ``sdpo_bench/training/update_order.py``;
   the permutations are drawn by ``Trainer._order`` in ``sdpo_bench/training/loop.py``. Each minibatch is updated at one
   denoising step at a time, so an epoch takes T times more optimiser steps.
4. The clipped regression loss on a pair (paper, eq. 13): :meth:`SDPO.loss` in this file. Its importance ratios are the
   log-ratios of the current to the sampling policy.

The log-probability of one denoising step is ``gaussian_log_prob`` in ``sdpo_bench/rollout/gaussian_step.py``, its mean
and standard deviation are those of the sampler (``rollout/ddim.py``, ``rollout/lcm.py``).

Items 1 to 3 belong to the shared engine, so that any method can use them. ``sdpo_sparse`` and ``sdpo_full`` replace
item 1, ``sdpo_accumulated`` replaces item 3. The paper's symbols: lambda is ``temporal_discount``, eta is
``log_scale``, gamma is ``advantage.gamma``.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from sdpo_bench.api import Loss, Method, Minibatch, RewardGuard, RewardMode, StepRewardSettings


@dataclass(frozen=True)
class SDPOSettings(StepRewardSettings):
    """Settings of SDPO's own."""

    reward: RewardMode = "predicted"
    """Dense rewards predicted from three queries (paper), queried at every step, or the last one alone; or, from
    deterministic completions, what a step gained (DenseGRPO), turning points (TP-GRPO) or branches."""
    guard: RewardGuard = "convex"
    """Where similarity weights are negative: keep predicted rewards in range, or the published arithmetic."""
    clip_range: Annotated[float, Ge(0)] = 1e-4
    """Log-ratios are clamped to this magnitude in the second branch of the loss; 0: no clipping (official: 1e-4)."""
    temporal_discount: Annotated[float, Gt(0), Le(1)] = 0.99
    """lambda: step i weighs lambda^i, so that i = 0 weighs most (official: 0.99)."""
    log_scale: Annotated[float, Gt(0)] = 1.0
    """Divides the log-ratio difference: the paper's eta (official: 1)."""


class SDPO(Method):
    """Dense reward difference learning on trajectory pairs with step-shuffled updates (SDPO)."""

    formula = (
        "mean max(u, u_c); u = (lambda^i / eta (r_a - r_b) - (A_a - A_b))^2; u_c the same with both r clamped to +-c"
    )
    source = "arXiv 2411.11727, eq. 13; code ZiyiZhang27/sdpo"
    Settings = SDPOSettings
    settings: SDPOSettings
    members = 2
    shared_noise = True
    final_image = "predicted"

    @property
    def reward_guard(self) -> RewardGuard:
        return self.settings.guard

    def loss(self, batch: Minibatch) -> Loss:
        """mean max(u, c), u = (w (r_a - r_b) - (A_a - A_b))^2, c the same with both r clamped (paper, eq. 13)."""
        assert batch.advantages is not None
        weight = self.settings.temporal_discount**batch.steps / self.settings.log_scale
        log_ratio = batch.log_probs - batch.old_log_probs  # of the importance ratio
        target = batch.advantages[:, 0] - batch.advantages[:, 1]
        unclipped = (weight * (log_ratio[:, 0] - log_ratio[:, 1]) - target) ** 2
        clip = self.settings.clip_range
        if clip == 0:
            return Loss(unclipped.mean())
        near = log_ratio.clamp(-clip, clip)
        clipped = (weight * (near[:, 0] - near[:, 1]) - target) ** 2
        fraction = (clipped > unclipped).float().mean()
        return Loss(unclipped.maximum(clipped).mean(), {"clip_fraction": fraction})
