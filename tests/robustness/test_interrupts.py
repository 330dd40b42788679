"""A signal that comes while a library reads, or a plugin works, ends the command whatever they make of its error."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from factories import make_resolved, make_trainer
from sdpo_bench.cli import entry
from sdpo_bench.errors import RunFailed
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.system import distributed
from sdpo_bench.system import signals as handlers
from sdpo_bench.system.signals import Stopped
from sdpo_bench.training import checkpoint


@pytest.fixture(autouse=True)
def stops():
    handlers.handle_stops(signal.SIGTERM)
    yield
    handlers._stop = None


def signalled():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)


def swallowed():
    """As C code does that looks whether an object has an attribute."""
    with suppress(Stopped):
        signalled()


def put_otherwise():
    try:
        signalled()
    except Stopped:
        raise OSError("Unable to load weights") from None


@pytest.mark.parametrize("library", [signalled, swallowed, put_otherwise])
def test_a_block_ends_by_the_signal(library):
    with pytest.raises(Stopped), handlers.preserve_stop():
        library()


@pytest.mark.parametrize("plugin", [signalled, swallowed, put_otherwise])
def test_so_does_a_plugins_answer(plugin):
    with pytest.raises(Stopped), plugin_code("reward 'x'"):
        plugin()


def test_without_a_signal_a_block_ends_as_it_does():
    with handlers.preserve_stop():
        pass
    with pytest.raises(OSError, match="gone"), handlers.preserve_stop():
        raise OSError("gone")


def test_what_is_saved_after_a_signal_is_not_disturbed_by_it():
    with pytest.raises(Stopped):
        try:
            signalled()
        finally:
            with handlers.preserve_stop():
                saved = True
            with pytest.raises(RunFailed), plugin_code("reward 'x'"):  # has a say in the state
                raise ValueError("full")
    assert saved


def test_a_training_whose_signal_was_swallowed_ends_with_its_epoch(tiny_pipe, tmp_path, monkeypatch):
    trainer = make_trainer(make_resolved(tiny_pipe), tmp_path)
    whole = type(trainer)._finish_epoch
    monkeypatch.setattr(type(trainer), "_finish_epoch", lambda *args: (whole(*args), swallowed()))
    with pytest.raises(Stopped):
        trainer.train()
    assert trainer.epoch == 1 and checkpoint.latest(trainer.run)[0] == checkpoint.path_of(trainer.run, 1)


READ = """
import signal, sys
from pathlib import Path
from sdpo_bench.training import checkpoint
from sdpo_bench.system import signals as handlers
path, seen = Path(sys.argv[1]), set()
for i in range(200):
    handlers.handle_stops(signal.SIGALRM)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002 + i % 40 * 1e-4)
        while True:
            try:
                checkpoint.read(path)
            except checkpoint.UsageError as error:
                if "does not have the digest" not in str(error):
                    sys.exit(f"taken for damaged: {error}")
    except KeyboardInterrupt:
        seen.add("stopped")
print(*seen)
"""


def test_a_signal_never_makes_a_sound_checkpoint_a_damaged_one(tmp_path):
    # safetensors puts any error of the Python code that it calls into its own words.
    path = tmp_path / "epoch-000001.safetensors"
    save_file(
        {f"t{i}": torch.zeros(4) for i in range(200)},
        path,
        {"sealed": json.dumps(["", json.dumps({"format": checkpoint.FORMAT})])},
    )
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "\n  sdpo-bench run --seed 3\n"),
        (1, "\n  sdpo-bench run"),
        (2, "torchrun, accelerate launch): ... -m sdpo_bench run --seed 3\n"),
    ],
)
def test_the_way_on_is_by_the_launcher_that_the_run_had(monkeypatch, count, shown):
    """One process alone would take all groups on itself, on one GPU."""
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
        if count:
            monkeypatch.setenv(name, str(count))
    monkeypatch.setattr(sys, "argv", ["sdpo-bench", "run", "--seed", "3"])
    assert shown in entry._interruption(KeyboardInterrupt()) + "\n"


def test_a_forked_worker_ends_by_sigterm_and_leaves_ctrl_c_to_its_parent():
    """A plugin's pool forks workers that inherit the handlers, and ends them by SIGTERM."""
    handlers.handle_stops(signal.SIGINT, signal.SIGTERM)
    worker = os.fork()
    if not worker:
        time.sleep(0.4)
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    os.kill(worker, signal.SIGINT)
    time.sleep(0.2)
    assert os.waitpid(worker, os.WNOHANG) == (0, 0)
    os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 143


SAVING = """
import signal, sys, time
from sdpo_bench.system.signals import handle_stops
handle_stops()
try:
    signal.raise_signal(getattr(signal, sys.argv[1]))
except KeyboardInterrupt:
    signal.raise_signal(getattr(signal, sys.argv[2]))
    print("saved", flush=True)
"""


@pytest.mark.parametrize(
    ("first", "second", "code", "said"),
    [("SIGINT", "SIGINT", 130, ""), ("SIGTERM", "SIGTERM", 0, "saved\n"), ("SIGINT", "SIGTERM", 0, "saved\n")],
)
def test_a_second_ctrl_c_ends_at_once_and_a_repeated_sigterm_does_not(first, second, code, said):
    done = subprocess.run(
        [sys.executable, "-c", SAVING, first, second],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout) == (code, said), done
