"""DrPO (drifting preference optimisation), arXiv 2606.02521; official code UGVly/DrPO (src/drpo/drift.py).

The samples of a prompt drift towards the best of their group and away from the worst, in a space of features: every
sample gets a target that its attraction and repulsion give, and the loss is the squared distance to it. The gradient
flows through the last denoising step (and the decoder and the reward's network, where the features are theirs); the
score of the reward needs none. A second, weaker drift towards samples of the base model from the same noise keeps the
policy near them.

The paper trains SD-Turbo at one step with features of a masked autoencoder of latents; the official code has others too
and sums the losses of several poolings of a layer. Here the features are one vector an image: the latents, the pixels,
or what the reward's own network sees. The learning rate is that of the official script for an adapter of SDXL-Turbo
(scripts/train/sdxl_turbo_drpo_mae.sh), as are 16 images and 8 anchors; a removed one for SD-Turbo had 24 and 1e-4.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from sdpo_bench.api import Added, Loss, Method, Minibatch, SampleFeatures
from sdpo_bench.errors import UsageError


@dataclass(frozen=True)
class DrPOSettings:
    """Settings of DrPO's own."""

    group_size: Annotated[int, Ge(2)] = 16
    """G: images of one prompt (official: 16)."""
    anchors: Annotated[int, Ge(1)] = 8
    """How many of the best attract and how many of the worst repel (official: 8); at most half of the group."""
    anchor_weight: Annotated[float, Gt(0)] = 3000.0
    """Weight of an anchor beside 1 of an ordinary sample (official: 3000)."""
    radii: tuple[Annotated[float, Gt(0)], ...] = (0.02, 0.05, 0.2)
    """How far attraction and repulsion reach, in units of the mean distance (official)."""
    reference_weight: Annotated[float, Ge(0)] = 0.2
    """Weight of the drift towards the base model's samples (official: 0.2); 0 computes none."""
    reference_radius: Annotated[float, Gt(0)] = 1e-5
    """Radius of that drift (official: 1e-5)."""
    features: Added[Literal["latent", "pixels", "scorer"]] = "latent"
    """Space of the drift: final latents, decoded pixels (a decoder call and its gradient for each image of an update),
    or the features of the reward's network (a reward call and its gradient each; rewards that expose them)."""


class DrPO(Method):
    """Samples drift towards the best and away from the worst of their group, in latents or features (DrPO)."""

    formula = (
        "squared distance of features (default: final latents) to where the best of the group attract and the worst "
        "repel them; + reference_weight times the same towards the base model's samples"
    )
    source = "arXiv 2606.02521; code UGVly/DrPO"
    Settings = DrPOSettings
    settings: DrPOSettings
    signal = "preference"
    granularity = "sample"
    final_image = "predicted"
    defaults = {"update.order": "accumulated", "update.lr": 1e-5}

    def __init__(self, settings: DrPOSettings):
        super().__init__(settings)
        anchors, size = settings.anchors, settings.group_size
        if 2 * anchors > size:
            raise UsageError(
                f"method.anchors = {anchors} best and as many worst do not fit into method.group_size = {size}. "
                f"Use --set method.anchors={size // 2}, or --set method.group_size={2 * anchors} or more."
            )

    @property
    def members(self) -> int:
        return self.settings.group_size

    @property
    def needs_reference(self) -> bool:
        return self.settings.reference_weight > 0

    @property
    def sample_features(self) -> SampleFeatures:
        return self.settings.features

    def loss(self, batch: Minibatch) -> Loss:
        """Drift loss of each group by itself, plus the weighted drift to the base model's samples; mean over groups."""
        import torch

        from sdpo_bench.methods._drift import preference_drift, reference_drift

        assert batch.samples is not None
        settings, weight, total, drift = self.settings, self.settings.anchor_weight, [], []
        for b, generated in enumerate(batch.samples.flatten(2)):
            rewards = batch.final_rewards[b]
            total.append(preference_drift(generated, rewards, settings.anchors, weight, settings.radii))
            if batch.ref_samples is not None:
                base = batch.ref_samples[b].flatten(1)
                drift.append(reference_drift(generated, base, weight, settings.reference_radius))
        value = torch.cat(total).mean()
        if not drift:
            return Loss(value)
        reference = torch.cat(drift).mean()
        return Loss(value + settings.reference_weight * reference, {"reference_drift": reference.detach()})
