"""Ctrl-C while processes of ours are still starting is the command's business, and no traceback of theirs."""

import subprocess
import sys
from textwrap import indent

SOON = """
import os, signal, sys, threading
from pathlib import Path
from sdpo_bench.sweep.worker import Task
from sdpo_bench.sweep.local_executor import LocalExecutor
from sdpo_bench.settings import Runtime
signal.signal(signal.SIGINT, lambda *_: print("heard"))
threading.Timer(float(sys.argv[1]), os.killpg, (os.getpgid(0), signal.SIGINT)).start()
"""
CELL = """
place = LocalExecutor(1)
place.start(Task("x", "x", None, Runtime(Path(sys.argv[2])), ""))  # a request that fails, in words
print(*(ended.code for ended in place.wait(60)))
"""


def test_ctrl_c_reaches_no_process_that_is_starting(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("if __name__ == '__main__':" + indent(SOON + CELL, "    "))  # the others read it too
    done = subprocess.run(
        [sys.executable, str(script), "0.3", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        start_new_session=True,
    )
    assert done.stderr == "" and set(done.stdout.splitlines()) == {"1", "heard"}, done
