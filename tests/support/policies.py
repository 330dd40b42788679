"""Policies that are loaded once a process and copied for each test: loading takes three times as long as a copy."""

import copy
from functools import lru_cache
from typing import Any

from sdpo_bench.models.base_model import load_policy, set_float32_products
from sdpo_bench.settings import ModelSettings


def fresh_policy(settings: ModelSettings, lora_seed: int) -> Any:
    """A policy on the CPU as ``load_policy`` gives it, shared with nobody."""
    set_float32_products(settings.precision, "cpu")
    return copy.deepcopy(_loaded(settings, lora_seed))


@lru_cache(maxsize=4)
def _loaded(settings: ModelSettings, lora_seed: int) -> Any:
    return load_policy(settings, lora_seed=lora_seed)
