"""A suite on another model than its file names: ``sdpo-bench sweep SUITE --model NAME``.

Methods, seeds, budget, evaluation and search stay. What belongs to the model changes with it: the preset, and the own
reward of the suite's model. The plan is recorded under a name of its own, so the suite's record stays as it is.
"""

import re
from dataclasses import replace

from sdpo_bench.config.resolve import DEFAULT_REWARD
from sdpo_bench.hashing import digest
from sdpo_bench.models.known_models import KNOWN, BaseModel, known_model
from sdpo_bench.sweep.suite import Moved, Suite, shown_names


def on_model(suite: Suite, name: str) -> Suite:
    """The suite on one model alone; the suite itself where that is all it has.

    Raises:
        UsageError: an unknown model, with the nearest name.
    """
    model = known_model(name)
    if suite.models == (model.name,):
        return suite
    moved = replace(
        suite,
        name=f"{suite.name}-on-{_slug(model.name)}",
        models=(model.name,),
        search_suite=on_model(suite.search_suite, name) if suite.search_suite else None,
        moved=Moved(suite.name, model.name, suite.models),
    )
    if model.name in suite.models:  # its settings are meant for this model too
        return moved
    rewards = _rewards(suite, model)
    changes = [f"model {model.name} in place of {shown_names(suite.models)}"]
    if rewards != suite.rewards:
        own = [reward for reward in suite.rewards if reward not in rewards]
        changes.append(f"its own reward {_own_reward(model)} in place of {shown_names(own)}")
    if suite.preset:
        changes.append(f"the preset that fits it in place of {suite.preset}")
    departs = "; ".join([*filter(None, [suite.departs]), *changes])
    return replace(moved, rewards=rewards, preset=None, departs=departs)


def _rewards(suite: Suite, model: BaseModel) -> tuple[str, ...]:
    """The suite's rewards, with the model's own in place of that of the suite's models."""
    own = {_own_reward(known_model(other)) for other in suite.models}
    return tuple(dict.fromkeys(_own_reward(model) if reward in own else reward for reward in suite.rewards))


def _own_reward(model: BaseModel) -> str:
    """The reward that ``run --model`` takes where none is named."""
    return model.native_reward or DEFAULT_REWARD


def _slug(model: str) -> str:
    """The model as a part of a file name; folders and hub ids of one last name stay apart."""
    if model in KNOWN:
        return model
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', model.rstrip('/').rpartition('/')[2])}-{digest(model, 6)}"
