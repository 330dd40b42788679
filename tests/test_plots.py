"""A figure is the data's alone: nothing of it comes from the user's matplotlib."""

import os
import subprocess
import sys

DRAW = """
import hashlib
from sdpo_bench.plots import Chart, Series, draw_charts
chart = Chart("reward by steps", "steps", "reward", [Series("sdpo", [1, 2, 4], [.1, .2, .3])], steps=True)
print(hashlib.sha256(draw_charts([chart], {"sdpo": {"color": "#123456"}}, columns=1, size=(3, 2))).hexdigest())
"""


def _drawn(folder, **variables):
    done = subprocess.run(
        [sys.executable, "-c", DRAW], env=os.environ | {"MPLCONFIGDIR": str(folder)} | variables,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_neither_settings_nor_backend_of_the_user_change_a_figure(tmp_path):
    plain = _drawn(tmp_path)
    rc = tmp_path / "matplotlibrc"
    rc.write_text("text.usetex: True\nfont.family: serif\naxes.linewidth: 5\nlines.linestyle: :\n")
    # What a notebook hands to its children; the module may be of another environment.
    assert _drawn(tmp_path, MATPLOTLIBRC=str(rc), MPLBACKEND="module://no_such_package.backend_inline") == plain
