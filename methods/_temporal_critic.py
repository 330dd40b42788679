"""The critic network of TDPO, apart from the method so that listing and planning need no torch."""

import torch
from torch import Tensor, nn


class TemporalCritic(nn.Module):
    """Expected return of a denoising state: ``latents [n, C, h, w]`` and step numbers ``[n]`` to ``[n]``."""

    def __init__(self, channels: int, num_steps: int, width: int = 64):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width // 2, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.step = nn.Embedding(num_steps, width)
        last = nn.Linear(width, 1)
        # Before it has learnt anything it says 0, the mean of normalised rewards: temporal rewards begin as DDPO's.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(5 * width, width), nn.SiLU(), last)

    def forward(self, latents: Tensor, steps: Tensor) -> Tensor:
        return self.head(torch.cat([self.features(latents), self.step(steps)], 1))[:, 0]
