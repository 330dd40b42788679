"""Drift of samples towards some anchors and away from others (DrPO, arXiv 2606.02521; UGVly/DrPO src/drpo/drift.py)."""

import torch
from torch import Tensor

SELF_PENALTY = 100.0
"""Logit by which a sample is kept from attracting or repelling itself, over the radius (official code)."""


def drift_loss(
    generated: Tensor,
    positive: Tensor,
    negative: Tensor,
    positive_weight: float,
    negative_weight: float,
    radii: tuple[float, ...],
    *,
    mask_negative_self: bool = False,
) -> Tensor:
    """Squared distance ``[B]`` of each sample to where it drifts, in units of the mean distance (laplacian kernel).

    Args:
        generated: ``[B, n, D]``, with gradients. The unit of length and the force are those of the whole batch.
        positive, negative: ``[B, p, D]``, ``[B, q, D]``: anchors, without gradients.
        mask_negative_self: the negatives are the generated samples themselves.
    """
    x = generated.detach().float()
    n, dim = x.shape[1:]
    others = torch.cat([x, negative.float(), positive.float()], 1)
    sizes = (n, negative.shape[1], positive.shape[1])
    parts = zip(sizes, (1.0, negative_weight, positive_weight))
    weights = torch.cat([torch.full((size,), weight) for size, weight in parts]).to(x)
    distance = (x[:, :, None] - others[:, None]).square().sum(-1).clamp(min=1e-8).sqrt()
    unit = ((distance * weights).mean() / weights.mean()).clamp(min=1e-3)
    unit_per_dim = unit / dim**0.5
    itself = torch.zeros(n, len(weights), device=x.device)
    itself[:, :n] = torch.eye(n)
    if mask_negative_self:
        itself[:, n : 2 * n] = torch.eye(n)
    force = torch.zeros_like(x)
    for radius in radii:
        logits = -distance / (unit * radius) - itself * SELF_PENALTY / radius
        kernel = (logits.softmax(2) * logits.softmax(1)).clamp(min=1e-6).sqrt() * weights
        attraction, repulsion = kernel[..., sizes[0] + sizes[1] :], kernel[..., : sizes[0] + sizes[1]]
        coefficient = torch.cat(
            [-repulsion * attraction.sum(2, keepdim=True), attraction * repulsion.sum(2, keepdim=True)], 2
        )
        pull = (coefficient @ others - coefficient.sum(2, keepdim=True) * x) / unit_per_dim
        force = force + pull / pull.square().mean().sqrt().clamp(min=1e-4)
    target = x / unit_per_dim + force
    return (generated / unit_per_dim - target).square().mean((1, 2))


def preference_drift(
    generated: Tensor, rewards: Tensor, anchors: int, weight: float, radii: tuple[float, ...]
) -> Tensor:
    """Drift ``[1]`` of one group towards its best ``anchors`` and away from as many worst, by ``rewards [n]``.

    Of equal rewards the earlier sample counts as the better one. Where all are equal no sample is preferred: the value
    is 0, with a graph whose gradient is 0.

    Args:
        generated: ``[n, D]``, with gradients.
    """
    samples, ranked = generated.detach(), rewards.argsort(descending=True, stable=True)
    best, worst = samples[ranked[:anchors]], samples[ranked[-anchors:]]
    preferred = float(rewards.max() > rewards.min())
    return preferred * drift_loss(generated[None], best[None], worst[None], weight, weight, radii)


def reference_drift(generated: Tensor, base: Tensor, weight: float, radius: float) -> Tensor:
    """Drift ``[1]`` of one group ``[n, D]`` towards the base model's samples ``[n, D]`` and away from its own."""
    x, own = generated[None], generated.detach()[None]
    return drift_loss(x, base[None], own, weight, weight, (radius,), mask_negative_self=True)
