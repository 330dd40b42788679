"""A method looks the same in every figure, whichever methods stand beside it."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from sdpo_bench.reporting.page.colours import COLOURS, DASHES, MARKERS, style_places
from sdpo_bench.reporting.plots import style_of
from sdpo_bench.reporting.templates import ASSETS

METHODS = Path(__file__).parents[3] / "methods"


def test_a_style_depends_on_the_label_alone():
    assert style_of(["a", "b", "sdpo"], "base model")["b"] == style_of(["b"], "base model")["b"]


def test_unknown_labels_have_the_same_style_in_every_process():
    code = "from sdpo_bench.reporting.page.colours import style_places; print(list(style_places('my own')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert tuple(json.loads(done.stdout)) == style_places("my own")


def test_every_shipped_method_has_a_style_of_its_own():
    listed = tomllib.loads((ASSETS / "method_styles.toml").read_text(encoding="utf-8"))
    shipped = {path.stem for path in METHODS.glob("*.py") if not path.stem.startswith("_")}
    assert set(listed) == shipped
    assert len({tuple(places) for places in listed.values()}) == len(listed)
    for colour, marker, dash in listed.values():
        assert colour < len(COLOURS) and marker < len(MARKERS) and dash < len(DASHES)
