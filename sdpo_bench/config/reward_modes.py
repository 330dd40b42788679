"""Which rewards of steps a method can learn from (``method.reward``), and the refusal of the others."""

from typing import Any

from sdpo_bench.api import SINGLE_STEP_MODES, Method
from sdpo_bench.errors import UsageError
from sdpo_bench.settings import RunConfig


def check_reward_mode(name: str, method: Method) -> None:
    """Refuse a value of ``method.reward`` that the loss cannot use.

    Raises:
        UsageError: names the modes that the method takes.
    """
    if method.reward_mode not in method.reward_modes:
        raise UsageError(
            f"method.reward: got '{method.reward_mode}', which {name} cannot use{_why_not(method)}. "
            f"It takes {', '.join(method.reward_modes)}."
        )


def _why_not(method: Method) -> str:
    if method.reward_mode in SINGLE_STEP_MODES and method.granularity == "trajectory":
        return " since it needs the return of a trajectory, and these rewards of steps do not add up to one"
    return " since it samples one image of a prompt" if method.reward_mode == "branch" else ""


def check_discount(config: RunConfig, method: Method) -> None:
    """Refuse returns of rewards that do not add up.

    A turning point's reward R_n - R_i holds the later gains already, so a return would count them twice; a branch's
    reward is that of the step that branched (TempFlow-GRPO). Methods without returns have no ``advantage.gamma``.

    Raises:
        UsageError: names the setting that leaves each step its own reward.
    """
    if config.advantage and config.advantage.gamma > 0 and method.reward_mode in SINGLE_STEP_MODES:
        raise UsageError(
            f"method.reward = {method.reward_mode} rewards each step by itself, and advantage.gamma = "
            f"{config.advantage.gamma:g} would add the rewards of later steps. Use --set advantage.gamma=0."
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
