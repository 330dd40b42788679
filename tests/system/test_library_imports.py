"""Libraries load late, without the garbage collector, and tables and plots not before they are needed."""

import gc
import subprocess
import sys
import weakref

import pytest

from sdpo_bench.system.library_imports import collector_paused


class Node:
    """An object that can be part of a cycle."""


UNTIL_THE_FIRST_CALL = """
import sys
import sdpo_bench.cli.commands.run
early = {"pandas", "pyarrow", "scipy", "matplotlib", "diffusers", "transformers", "peft", "torch._dynamo"}
assert not early & set(sys.modules), early & set(sys.modules)
from sdpo_bench.models.base_model import load_policy
from sdpo_bench.settings import ModelSettings
load_policy(ModelSettings(), lora_seed=0).encode(["cat"])
late = {"pandas", "pyarrow", "matplotlib"}
assert not late & set(sys.modules), late & set(sys.modules)
"""


@pytest.mark.slow
def test_a_run_imports_no_tables_and_plots_before_its_first_denoiser_call():
    done = subprocess.run([sys.executable, "-c", UNTIL_THE_FIRST_CALL], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_collector_rests_while_libraries_load_and_is_as_before_afterwards():
    assert gc.isenabled()
    with pytest.raises(ImportError), collector_paused():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_objects_of_the_block_are_old_and_garbage_is_still_found(monkeypatch):
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)  # the tests' own process freezes what is imported
    with collector_paused():
        module = [[] for _ in range(1000)]
        cycle = Node()
        cycle.itself = cycle
    assert any(found is module for found in gc.get_objects(generation=2))
    gone = weakref.ref(cycle)
    del cycle
    gc.collect()
    assert gone() is None


def test_in_a_process_that_freezes_objects_those_of_the_block_are_frozen_too():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with collector_paused():
            module = [[] for _ in range(1000)]
        assert gc.get_freeze_count() >= frozen + len(module)
    finally:
        gc.unfreeze()
    with collector_paused():
        pass
    assert gc.get_freeze_count() == 0
