"""What a loss sees of final samples: their latents, the decoded images, or the features of the reward's own network."""

import torch
from torch import Tensor

from sdpo_bench.api import SampleFeatures
from sdpo_bench.ledger import Ledger
from sdpo_bench.models.policy import Policy
from sdpo_bench.scoring.scorer import Scorer


def sample_features(
    policy: Policy, scorer: Scorer | None, ledger: Ledger, latents: Tensor, kind: SampleFeatures
) -> Tensor:
    """Features of latents ``[n, C, h, w]``, with the graph to latents that have one: ``[n, C, h, w]``,
    ``[n, 3, H, W]`` or ``[n, D]`` by ``kind``. Charges the ledger.
    """
    if kind == "latent":
        return latents
    images = policy.decode(latents)
    if kind == "pixels":
        ledger.decoded += len(images)
        ledger.decoded_backward += len(images) * images.requires_grad
        return images
    assert scorer is not None
    return scorer.features(images).to(latents.device)


@torch.no_grad()
def features_in_parts(
    policy: Policy, scorer: Scorer | None, ledger: Ledger, latents: Tensor, kind: SampleFeatures, size: int
) -> Tensor:
    """The same without graph for ``latents [N, G, C, h, w]``, in calls of at most ``size``: ``[N, G, ...]``."""
    flat = latents.flatten(0, 1)
    parts = [sample_features(policy, scorer, ledger, part, kind) for part in flat.split(size)]
    return torch.cat(parts).to(policy.storage).unflatten(0, latents.shape[:2])
