"""Ask a method for its loss: somebody else's code, so what is wrong with the answer is said by the method's name,
before autograd or the log says it by ours.
"""

from torch import Tensor

from sdpo_bench.api import Loss, Method, Minibatch
from sdpo_bench.errors import RunFailed, SdpoBenchError
from sdpo_bench.experience import OWN_KEYS
from sdpo_bench.out_of_memory import is_out_of_memory
from sdpo_bench.process_state import kept_process_state

HINT = "More: sdpo-bench doctor --plugin NAME"


def ask_loss(method: Method, batch: Minibatch) -> Loss:
    """The loss of one minibatch.

    Raises:
        RunFailed: it raises, changes the minibatch, or gives no :class:`Loss`, no scalar, no gradient, or a metric
            under a name that the log itself uses.
    """
    name = type(method).__name__
    before = _versions(batch)
    try:
        with kept_process_state():
            loss = method.loss(batch)
    except SdpoBenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # the engine's to mend
            raise
        raise RunFailed(f"method '{name}': loss() raised {type(error).__name__}: {error}. {HINT}") from error
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
        raise RunFailed(f"method '{name}': loss() gave {got}; sdpo_bench.api.Loss with a tensor is due. {HINT}")
    if loss.value.shape != () or not loss.value.requires_grad:
        what = f"shape {tuple(loss.value.shape)}" if loss.value.shape != () else "no gradient"
        raise RunFailed(f"method '{name}': its loss has {what}; a scalar that carries a gradient is due. {HINT}")
    if taken := OWN_KEYS.intersection(loss.metrics):
        raise RunFailed(f"method '{name}': '{min(taken)}' is the log's own name; call the metric otherwise. {HINT}")
