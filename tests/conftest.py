"""Shared test machinery: one CPU thread, a tiny pipeline, and rewards and policies that are quick to build."""

import gc
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from places import HERE, OFFICIAL

from sdpo_bench.system.signals import STOPS

gc.disable()  # until everything is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in ``robustness/`` can be left out by ``-m "not robustness"``."""
    for item in items:
        if HERE / "robustness" in item.path.parents:
            item.add_marker("robustness")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``-n`` deals out the files in order, so that what a module's tests share is made in one process only."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_finish() -> None:
    """Garbage collections pass over what is imported by now: a million objects cost half a second each time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def handlers():
    """The command line sets handlers for good, as a process of its own may; here they go back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *STOPS)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def default_results(monkeypatch, tmp_path):
    """Commands without ``--results`` look into a folder of the test, not into the runs of the person who tests."""
    monkeypatch.setenv("SDPO_BENCH_OUT", str(tmp_path / "results"))


@pytest.fixture(scope="session")
def official() -> Path:
    """Folder of numbers computed by the official implementations (``SDPO_BENCH_FIXTURES`` names another set)."""
    if not OFFICIAL.is_dir():
        pytest.fail(f"no fixtures at {OFFICIAL}; SDPO_BENCH_FIXTURES must name a folder with a_ddim_step.npz and so on")
    return OFFICIAL


@pytest.fixture(scope="session")
def tiny_pipe(official: Path) -> Path:
    """A random Stable-Diffusion pipeline of 0.43 M parameters with SD-Turbo's scheduler settings."""
    return official / "tiny_pipe"


@pytest.fixture
def tiny_policy(tiny_pipe: Path):
    """A fresh policy of the tiny pipeline with a LoRA whose B matrices are not zero, so that it differs from base."""
    from policies import fresh_policy

    from sdpo_bench.settings import ModelSettings

    policy = fresh_policy(ModelSettings(name=str(tiny_pipe)), 1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in policy.lora_parameters().items():
        if "lora_B" in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy
