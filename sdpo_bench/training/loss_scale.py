"""Loss scaling for fp16: the loss is multiplied before the backward pass, and the gradients are divided after it.

A log-probability is a mean over all latent elements, so at 64 x 64 latents the gradient of one element is about 1e-8.
The smallest fp16 number is 6e-8: without scaling most gradients round to zero. Initial scale, growth and backoff are
the defaults of ``torch.amp.GradScaler``, through which accelerate runs the official code's fp16: a step whose gradients
overflow is skipped and halves the scale; 2,000 steps in a row without overflow double it.
"""

from typing import Any

import torch
from torch import Tensor

INITIAL = 65536.0
"""First scale (default of ``torch.amp.GradScaler``, and so the official code's)."""
SMALLEST = 1.0
"""Gradients that overflow at this scale would overflow without scaling."""


class LossScale:
    """No scaling, for every precision but fp16: losses and gradients stay as they are, bit for bit."""

    factor: float | None = None
    """What losses are multiplied by; ``None`` without scaling."""

    def apply(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Divide the gradients of all parameters, after their sum over processes and before clipping."""

    def update(self) -> bool:
        """Set the scale for the next optimiser step; return whether gradients overflowed and a smaller one can help."""
        return False

    def state(self) -> dict[str, Any] | None:
        """Plain data for the checkpoint; ``None`` without scaling."""
        return None

    def load(self, state: dict[str, Any]) -> None:
        """Restore the :meth:`state` of a checkpoint."""


class Fp16Scale(LossScale):
    """Dynamic scaling by ``torch.amp.GradScaler``.

    Every process sees the same summed gradients, so all skip the same steps and keep the same scale.

    Args:
        device: device of the loss.
        initial: first scale.
    """

    factor: float

    def __init__(self, device: torch.device, initial: float = INITIAL):
        self._device = device
        self._start(torch.amp.GradScaler(device.type, init_scale=initial))

    def _start(self, scaler: torch.amp.GradScaler) -> None:
        self._scaler = scaler
        scaler.scale(torch.zeros((), device=self._device))  # allocates its state, also in a process that scales no loss
        self._unscaled = False
        self.factor = scaler.get_scale()

    def apply(self, loss: Tensor) -> Tensor:
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        # Steps of weight 0 leave all parameters without a gradient, which GradScaler refuses.
        self._unscaled = any(p.grad is not None for group in optimiser.param_groups for p in group["params"])
        if self._unscaled:
            self._scaler.unscale_(optimiser)

    def update(self) -> bool:
        if not self._unscaled:
            return False
        before = self.factor
        self._scaler.update()
        self.factor = self._scaler.get_scale()
        return self.factor < before and before > SMALLEST

    def state(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        # A new scaler: one that ran out of memory between unscale and update would refuse the next unscale.
        scaler = torch.amp.GradScaler(self._device.type)
        scaler.load_state_dict(state)
        self._start(scaler)


def loss_scale(dtype: torch.dtype, device: torch.device) -> LossScale:
    """The scaling that a compute dtype needs."""
    return Fp16Scale(device) if dtype == torch.float16 else LossScale()
