"""The progress of a run on a real terminal, as tmux holds it: the same program at 80 and at 120 columns."""

import re
import shutil
import subprocess
import sys
import time
from itertools import count

import pytest

TMUX = shutil.which("tmux")
LABEL = "sdpo_accumulated on emoji-an+emoji-style*0.5"
# The program waits beside a file until the test has looked and removed the file.
PROGRAM = f"""
import sys, time
from pathlib import Path
from sdpo_bench.running.live import Live
from sdpo_bench.system.progress import RunPlan, Tick

def wait(name):
    file = Path(sys.argv[1]) / name
    file.touch()
    while file.exists():
        time.sleep(0.05)

plan = RunPlan("sdpo", epochs=28, denoiser_calls=2800, training=4200.0, tuned=800.0, base=800.0)
with Live({LABEL!r}, plan) as live:
    for epoch in range(1, 29):
        live.tick(Tick(epoch - 1, 64.0 * (epoch - 1), 1792, "images", "updating", {{}}, 100 * epoch - 50))
        if epoch == 15:
            wait("training")
            live.warn("the KL divergence from the base model is 3.2")
        metrics = {{"reward_mean": -1.339 + 0.01 * epoch, "epoch": epoch}}
        live.tick(Tick(epoch, 64.0 * epoch, 1792, "images", "epoch", metrics, 100 * epoch))
        time.sleep(0.05)
    live.evaluation("sdpo, validation prompts, 16 steps", 500, 500)
    live.evaluation("base, validation prompts, 16 steps", 250, 500)
    wait("evaluation")
print("results/runs/sdpo-x")
wait("end")
"""


def wait_for(file):
    for attempt in count():
        if file.exists():
            break
        assert attempt < 600, f"{file.name}: the program did not come so far"
        time.sleep(0.1)
    time.sleep(0.5)  # the display is drawn four times a second


@pytest.mark.skipif(TMUX is None, reason="no tmux here (Debian: apt-get install tmux)")
@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_one_bar_and_keeps_the_last_line(tmp_path, width):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def tmux(*words):
        command = [str(TMUX), "-S", str(tmp_path / "socket"), "-f", "/dev/null", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def frame(name):
        wait_for(tmp_path / name)
        rows = tmux("capture-pane", "-p", "-J").splitlines()  # -J: a wrapped line as one
        (tmp_path / name).unlink()
        return [row.rstrip() for row in rows if row.strip()]

    # pytest imports readline, which sets COLUMNS and LINES; -u: tmux would replace what its own locale cannot hold.
    run = f"env -u COLUMNS -u LINES LC_ALL=C.UTF-8 {sys.executable} {program} {tmp_path}"
    tmux("-u", "new-session", "-d", "-x", str(width), "-y", "24", run)
    try:
        training, evaluation, end = (frame(name) for name in ("training", "evaluation", "end"))
    finally:
        subprocess.run([str(TMUX), "-S", str(tmp_path / "socket"), "kill-server"], capture_output=True, timeout=60)
    bar, text = training
    assert len(bar) == width - 2
    # 14.5 of 28 epochs of the 4,200 units of training, of 5,800 in all: 37.5 %
    assert re.fullmatch(r"sdpo_accumulated on emoji-a\.\.\. ━{5,}─{5,}  3[78]%  0:\d\d  ETA \d+:\d\d", bar)
    more = (" in the last 3 epochs", " since epochs 1 to 3") if width == 120 else ("", "")  # of -1.339 + .01 epoch
    assert text == f"  epoch 15 of 28, updating   reward -1.209{more[0]} (+0.11{more[1]})"
    said, bar, text = evaluation
    assert said == "warning: the KL divergence from the base model is 3.2"
    # all of the training and of the tuned model's 800 units, half of the base model's 800: 93.1 %
    assert re.fullmatch(r"sdpo_accumulated on emoji-a\.\.\. ━{20,}─{1,9}  93%  0:\d\d  ETA \d+:\d\d", bar)
    more = (" in the last 7 epochs", " since epochs 1 to 7") if width == 120 else ("", "")
    assert text == f"  evaluate base, validation prompts, 16 steps   reward -1.089{more[0]} (+0.21{more[1]})"
    # The bar is gone; warning, last line and result stay.
    assert len(end) == 3 and end[0] == said and end[2] == "results/runs/sdpo-x"
    assert re.fullmatch(
        rf"\[[-\d]+ [:\d]+\] {re.escape(LABEL)}: done in 0:\d\d, 28 epochs, reward -1.089 in the last 7 epochs "
        r"\(\+0.21 since epochs 1 to 7\)",
        end[1],
    )
