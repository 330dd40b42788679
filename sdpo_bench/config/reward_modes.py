"""Which rewards of steps a method can learn from (``method.reward``), and the refusal of the others."""

from typing import Any

from sdpo_bench.api import Method
from sdpo_bench.errors import UsageError


def check_reward_mode(name: str, method: Method) -> None:
    """Refuse a value of ``method.reward`` that the loss cannot use.

    Raises:
        UsageError: names the modes that the method takes.
    """
    if method.reward_mode not in method.reward_modes:
        why = " since it samples one image of a prompt" if method.reward_mode == "branch" else ""
        raise UsageError(
            f"method.reward: got '{method.reward_mode}', which {name} cannot use{why}. "
            f"It takes {', '.join(method.reward_modes)}."
        )


def no_reward_mode(name: str, given: Any, method: Method) -> UsageError:
    """The error for ``method.reward`` of a method whose rewards are no choice."""
    if method.signal == "none":
        what = "trains nothing"
    elif method.signal == "gradient":
        what = "follows the reward's own gradient at the final image"
    else:
        what = f"takes {method.reward_mode} rewards alone"
    return UsageError(f"method.reward: got '{given}', and {name} {what}. Leave it out, or use another --method.")
