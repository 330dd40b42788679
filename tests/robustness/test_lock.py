"""The lock of a run folder is its own process's: what that process has started neither keeps it nor frees it."""

import os
import subprocess
import sys

import pytest

from sdpo_bench.errors import Busy
from sdpo_bench.runs.run_folder import RunFolder

# As a pool's workers do, the forked process waits for more work for ever.
HOLDER = """
import os, sys, time, pathlib
from sdpo_bench.runs.run_folder import RunFolder
with RunFolder(pathlib.Path(sys.argv[1])).locked():
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(300)
"""


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create({"kind": "run"})
    return run


def test_the_workers_of_a_killed_run_do_not_hold_it(run):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        assert run.is_locked
        with pytest.raises(Busy), run.locked():
            pass
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # which still lives
        with run.locked():
            assert run.is_locked
    finally:
        os.kill(worker, 9)


def test_a_forked_process_that_ends_frees_nothing(run):
    with run.locked():
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        assert run.is_locked
    assert not run.is_locked
