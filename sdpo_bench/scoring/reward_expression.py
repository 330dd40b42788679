"""What ``--reward`` names: one reward plugin, or a weighted sum of several such as ``hpsv2*0.5+aesthetic*0.5``.

An evaluation also takes ``variety:NAME``, how different a prompt's pictures are by that reward's features.

A sum is written by name and weight, so any installed rewards can be combined without a plugin of their own. Settings
of a part carry its name: ``--set reward.hpsv2.precision=bf16``.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sdpo_bench.api import Reward
from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.plugins.contract_check import check_instance
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import BUILT_IN, Plugin, find
from sdpo_bench.reward_formula import EXAMPLE, is_sum, parse_sum, sum_name
from sdpo_bench.scoring.variety import FEWEST, PREFIX, Variety
from sdpo_bench.settings import DEFAULT_MODEL


@dataclass(frozen=True)
class Choice:
    """A reward that was asked for and found; nothing of it is imported before :meth:`validate` or :meth:`make`.

    Attributes:
        name: the plugin's name, or the sum in one form: parts by name, every weight written out.
        parts: plugin and weight of each part, sorted by name.
        weighted: whether it is a sum (also one of a single weighted part).
        variety: whether it is the variety of pictures by a single reward's features.
    """

    name: str
    parts: tuple[tuple[Plugin, float], ...]
    weighted: bool
    variety: bool = False

    @property
    def native_model(self) -> str:
        """Base model it is normally used with: that of its parts, the embedded one only if all agree."""
        own = sorted({str(plugin.load().native_model) for plugin, _ in self.parts} - {DEFAULT_MODEL})
        return own[0] if own else DEFAULT_MODEL

    def setting_keys(self) -> list[str]:
        """Valid keys after ``reward.``."""
        if not self.weighted:
            return [f.name for f in fields(self.parts[0][0].load().Settings)]
        own = [f.name for f in fields(_composite().Settings)]
        return own + [f"{plugin.name}.{f.name}" for plugin, _ in self.parts for f in fields(plugin.load().Settings)]

    def validate(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All settings as plain data, defaults filled in.

        Raises:
            UsageError: an unknown key or a wrong value.
        """
        unknown = sorted(set(values) - set(self.setting_keys()))
        if unknown:
            raise UsageError(f"'{self.name}' has no setting '{unknown[0]}'. Valid: {', '.join(self.setting_keys())}.")
        if not self.weighted:
            return asdict(validate(self.parts[0][0].load().Settings, values, "reward"))
        own = {key: value for key, value in values.items() if "." not in key}
        values_by_key = asdict(validate(_composite().Settings, own, "reward"))
        for plugin, _ in self.parts:
            part_settings = validate(plugin.load().Settings, _of_part(values, plugin.name), f"reward.{plugin.name}")
            values_by_key |= {f"{plugin.name}.{key}": value for key, value in asdict(part_settings).items()}
        return values_by_key

    def singles(self, settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Name of each part with its own settings, defaults filled in; a single reward is its only part.

        Raises:
            UsageError: as :meth:`validate`.
        """
        full = self.validate(settings)
        if not self.weighted:
            return [(self.parts[0][0].name, full)]
        return [(plugin.name, _of_part(full, plugin.name)) for plugin, _ in self.parts]

    def make(
        self, settings: Mapping[str, Any], device: str = "cpu", basis: Any = None, pictures: int = FEWEST
    ) -> Reward:
        """The reward, not loaded yet.

        Args:
            basis: what a sum is standardised over (``weighted_sum.Basis``); single rewards need none.
            pictures: of each prompt that are judged, which a variety compares.
        """
        rewards: list[Reward] = []
        for (_, own), (plugin, _) in zip(self.singles(settings), self.parts):
            reward_class = plugin.load()
            values = validate(reward_class.Settings, own, "reward")
            who = f"reward '{plugin.name}'"
            with plugin_code(f"{who}: __init__()"):
                rewards.append(reward_class(values, device))
            if plugin.owner != BUILT_IN:  # those are checked by the tests; and 'remote' would have to ask its service
                check_instance(who, rewards[-1])
        if not self.weighted:
            return Variety(self.parts[0][0].name, rewards[0], pictures) if self.variety else rewards[0]
        full = self.validate(settings)
        own = {key: value for key, value in full.items() if "." not in key}
        parts = [(part.filed_as or plugin.name, weight, part) for part, (plugin, weight) in zip(rewards, self.parts)]
        composite = _composite()
        combined: Reward = composite(validate(composite.Settings, own, "reward"), device, parts, basis)
        return combined


def _composite() -> Any:
    from sdpo_bench.scoring.weighted_sum import Composite

    return Composite


def _of_part(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Settings of one part; names may have dots, setting names have none."""
    return {key.rpartition(".")[2]: value for key, value in values.items() if key.rpartition(".")[0] == part}


def choose(text: str) -> Choice:
    """The reward, the weighted sum, or the variety of pictures, of that name.

    Raises:
        UsageError: bad syntax, an unknown or repeated part, a weight that is zero or not finite.
    """
    if text.startswith(PREFIX):
        plugin = find("rewards", text.removeprefix(PREFIX))
        return Choice(f"{PREFIX}{plugin.name}", ((plugin, 1.0),), weighted=False, variety=True)
    if not is_sum(text):
        plugin = find("rewards", text)
        return Choice(plugin.name, ((plugin, 1.0),), weighted=False)
    parts: dict[str, tuple[Plugin, float]] = {}
    for name, weight in parse_sum(text):
        plugin = find("rewards", name)
        if plugin.name in parts:
            raise UsageError(f"'{text}' has the part '{plugin.name}' twice. Give it once, with the sum of the weights.")
        parts[plugin.name] = (plugin, weight)
    if not any(weight for _, weight in parts.values()):
        raise UsageError(f"all weights of '{text}' are zero: there is nothing to learn from. {EXAMPLE}")
    for name, (_, weight) in parts.items():
        if weight == 0 or not math.isfinite(weight):
            raise UsageError(f"part '{name}' of '{text}' has weight {weight:g}. Leave it out, or give it another.")
    ordered = tuple(parts[name] for name in sorted(parts))
    return Choice(sum_name([(plugin.name, weight) for plugin, weight in ordered]), ordered, weighted=True)


def same_reward(given: str, name: str) -> bool:
    """Whether what a person typed is the reward of that name, in whatever spelling or order of parts."""
    if given == name:
        return True
    try:
        return choose(given).name == name
    except UsageError:
        return False
