"""Ask a method for its loss: somebody else's code, so what is wrong with the answer is said by the method's name,
before autograd or the log says it by ours.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sdpo_bench.advantages.experience import OWN_KEYS
from sdpo_bench.api import Loss, Method, Minibatch
from sdpo_bench.errors import RunFailed
from sdpo_bench.plugins.call import plugin_code

HINT = "More: sdpo-bench doctor --plugin NAME"


def ask_loss(method: Method, batch: Minibatch) -> Loss:
    """The loss of one minibatch.

    Raises:
        RunFailed: it raises, changes the minibatch, or gives no :class:`Loss`, no scalar, no gradient, or a metric
            under a name that the log itself uses.
    """
    name = type(method).__name__
    before = _versions(batch)
    with plugin_code(f"method '{name}': loss()", HINT):
        loss = method.loss(batch)
    if changed := [key for key, version in _versions(batch).items() if version != before[key]]:
        raise RunFailed(f"method '{name}': loss() changes the minibatch in place ({', '.join(changed)}). {HINT}")
    _check(loss, name)
    return loss


def _versions(batch: Minibatch) -> dict[str, int]:
    """How often each tensor has been written to."""
    return {key: value._version for key, value in vars(batch).items() if isinstance(value, Tensor)}


def _check(loss: object, name: str) -> None:
    if not isinstance(loss, Loss) or not isinstance(loss.value, Tensor):
        got = type(loss.value if isinstance(loss, Loss) else loss).__name__
        raise RunFailed(f"method '{name}': loss() gave {got}; expected sdpo_bench.api.Loss with a tensor. {HINT}")
    if what := _no_loss(loss.value):
        raise RunFailed(f"method '{name}': its loss has {what}; expected a scalar that carries a gradient. {HINT}")
    if not isinstance(loss.metrics, Mapping) or not all(isinstance(key, str) for key in loss.metrics):
        raise RunFailed(f"method '{name}': its metrics are no dict of numbers by name. {HINT}")
    if taken := OWN_KEYS.intersection(loss.metrics):
        raise RunFailed(f"method '{name}': '{min(taken)}' is the log's own name; call the metric otherwise. {HINT}")


def _no_loss(value: Tensor) -> str:
    """What keeps a tensor from being a loss; empty for none."""
    if value.is_complex():
        return "complex numbers"
    if value.shape != ():
        return f"shape {tuple(value.shape)}"
    return "" if value.requires_grad else "no gradient"


def numbers(method: Method, loss: Loss) -> dict[str, Tensor]:
    """What a loss wants logged, as float64 scalars.

    Raises:
        RunFailed: something that is no number, or not finite, which no log can hold.
    """
    found = {}
    for key, value in loss.metrics.items():
        try:
            plain = value.detach().cpu() if isinstance(value, Tensor) else value
            if isinstance(plain, Tensor) and plain.is_complex():
                raise TypeError
            found[key] = torch.as_tensor(plain, dtype=torch.float64)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise _no_number(method, key, type(value).__name__) from error
        if found[key].shape != ():
            raise _no_number(method, key, f"of shape {tuple(found[key].shape)}")
        if not math.isfinite(found[key]):
            raise _no_number(method, key, f"{found[key].item()}")
    return found


def _no_number(method: Method, key: str, got: str) -> RunFailed:
    text = f"its metric '{key}' is {got}; expected a finite number"
    return RunFailed(f"method '{type(method).__name__}': {text}. {HINT}")
