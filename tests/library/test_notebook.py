"""The notebook of ``examples/`` runs as it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first-steps.ipynb"


def code_cells():
    return [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_the_notebook_uses_all_functions_and_holds_no_output():
    notebook = json.loads(NOTEBOOK.read_text())
    text = "\n".join(code_cells())
    assert all(f"sb.{name}(" in text for name in ("run", "load_results", "load_policy", "compare", "report"))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(code_cells())], cwd=tmp_path, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "emoji-align" in done.stdout
    assert list((tmp_path / "results" / "runs").glob("sdpo-*/lora"))
