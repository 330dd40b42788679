"""A figure is the data's alone: nothing of it comes from the user's matplotlib, and without data there is none."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from report_factory import base_frame, make_base, make_run, spread

from sdpo_bench.cli.report_commands import report
from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.results.read_results import load_results

DRAW = """
import hashlib
from sdpo_bench.reporting.plots import draw_charts
from sdpo_bench.statistics.chart import Chart, Series
chart = Chart("reward by steps", "steps", "reward", [Series("sdpo", [1, 2, 4], [.1, .2, .3])], steps=True)
print(hashlib.sha256(draw_charts([chart], {"sdpo": {"color": "#123456"}}, columns=1, size=(3, 2))).hexdigest())
"""


def _drawn(folder, **variables):
    done = subprocess.run(
        [sys.executable, "-c", DRAW],
        env=os.environ | {"MPLCONFIGDIR": str(folder)} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_neither_settings_nor_backend_of_the_user_change_a_figure(tmp_path):
    plain = _drawn(tmp_path)
    rc = tmp_path / "matplotlibrc"
    rc.write_text("text.usetex: True\nfont.family: serif\naxes.linewidth: 5\nlines.linestyle: :\n")
    # What a notebook hands to its children; the module may be of another environment.
    assert _drawn(tmp_path, MATPLOTLIBRC=str(rc), MPLBACKEND="module://no_such_package.backend_inline") == plain


@pytest.mark.parametrize("log", [None, "", '{"epoch": 1}\n'], ids=["no log", "empty", "no curve"])
def test_a_page_is_whole_where_no_training_has_a_curve(tmp_path, log):
    # Of best-of-n, which trains nothing, or where logs were lost.
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    folder = make_run(tmp_path, "best_of_n", scores=spread([1, 1, 1]))
    (folder / "train.jsonl").unlink() if log is None else (folder / "train.jsonl").write_text(log)
    call = ["--results", str(tmp_path), "--format", "all", "--out", str(tmp_path / "pages")]
    done = CliRunner().invoke(report, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "pages" / "report.html").read_text(encoding="utf-8")
    figures = {path.stem for path in (tmp_path / "pages" / "figures").glob("*.svg")}
    assert figures and not [name for name in figures if name.startswith("setting-1-cost")], figures
    assert all((f'id="{name}"' in page) for name in figures) and 'src=""' not in page and "-diagnostics" not in page


def test_a_chart_names_the_methods_of_one_seed(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in range(2):
        make_run(tmp_path, "sdpo", seed, spread([1 + seed] * 3))
    make_run(tmp_path, "ddpo", 0, spread([1, 1, 1]))
    found = build_report(load_results(tmp_path), Request()).sections[0]
    assert [chart.note for chart in found.parts[0].figures[0].charts()] == ["1 seed, no interval: ddpo"] * 2
