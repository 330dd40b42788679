"""``report --format all`` leaves figures for papers with their data beside them."""

import csv
import re

from click.testing import CliRunner
from report_factory import base_frame, make_base, make_run, spread

from sdpo_bench.cli.report_commands import report


def test_figures_have_their_data_beside_them_and_the_first_screen_is_a_file(tmp_path):
    make_base(tmp_path, base_frame(spread([0, 0, 0])))
    for seed in range(2):
        make_run(tmp_path, "sdpo", seed, spread([1 + seed, 2 + seed, 3 + seed]))
    out = tmp_path / "pages"
    call = ["--results", str(tmp_path), "--format", "all", "--out", str(out), "--select", "seed=0,1", "--metric", "few"]
    assert CliRunner().invoke(report, call, catch_exceptions=False).exit_code == 0
    drawn = {path.stem for path in (out / "figures").glob("*.svg")}
    assert drawn and drawn == {path.stem for path in (out / "figures").glob("*.csv")}
    options = "--format all --select seed=0,1 --metric few"
    assert f"`sdpo-bench report --results {tmp_path} {options}`" in (out / "figures" / "README.md").read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", (out / "report.html").read_text(), re.S)
    assert len(captions) == len(drawn) and all(f"<code>sdpo-bench report {options}</code>" in c for c in captions)
    assert (out / "first-screen.png").read_bytes().startswith(b"\x89PNG")
    assert b"<text" not in (out / "first-screen.svg").read_bytes()  # lettering is outlines: the same everywhere
    rows = list(csv.DictReader((out / "first-screen.csv").read_text().splitlines()))
    # gains of seeds 0 and 1 over a base model of 0, by step count
    assert [(row["line"], row["x"], float(row["y"])) for row in rows] == [
        ("sdpo", "1", 1.5),
        ("sdpo", "2", 2.5),
        ("sdpo", "4", 3.5),
    ]
