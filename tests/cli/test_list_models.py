"""What ``sdpo-bench list models`` and ``fetch`` say of a model's licence and access, and all of one model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdpo_bench.cli.commands import fetch
from sdpo_bench.cli.main import cli
from sdpo_bench.errors import UsageError
from sdpo_bench.models.known_models import KNOWN
from sdpo_bench.models.pipeline_files import published

ROOT = Path(__file__).parents[2]

# Pages of the hub: "You need to agree to share your contact information" on that of sd3.5-large-turbo, an ungated copy
# of sd3.5-medium that says so, github.com/black-forest-labs/flux/issues/434 for FLUX.1 schnell. File lists of the
# others are shown without such a notice; their licence tags are mit (LCM) and apache-2.0 (Z-Image).
LICENCES = {
    "emoji-turbo": ("MIT", False),
    "emoji-flow": ("MIT", False),
    "emoji-flow-base": ("MIT", False),
    "sd-turbo": ("Stability AI (see its LICENSE.md)", False),
    "lcm-dreamshaper-v7": ("MIT", False),
    "sdxl-turbo": ("Stability AI (see its LICENSE.md)", False),
    "sd3.5-large-turbo": ("Stability AI Community", True),
    "sd3.5-medium": ("Stability AI Community", True),
    "flux.1-schnell": ("Apache-2.0", True),
    "z-image-turbo": ("Apache-2.0", False),
}


def listed(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["list", "models", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_model_is_listed_with_its_licence_and_whether_it_is_gated():
    rows = json.loads(listed("--json"))
    assert {row["name"]: (row["licence"], row["gated"]) for row in rows} == LICENCES
    lines = {line.split()[1]: line for line in listed().splitlines() if line.startswith("│ ") and line[2] != " "}
    assert "Apache-2.0" in lines["flux.1-schnell"] and " yes " in lines["flux.1-schnell"]
    assert "Apache-2.0" in lines["z-image-turbo"] and " no " in lines["z-image-turbo"]
    assert "sdpo-bench list models NAME" in listed()


def test_one_model_is_shown_with_everything_known_of_it():
    """SD3.5 medium: 40 steps with guidance 4.5 (its card and Flow-GRPO's evaluation), 1024 pixels."""
    shown = json.loads(listed("sd3.5-medium", "--json"))
    assert shown["weights"] == "hub: stabilityai/stable-diffusion-3.5-medium"
    assert (shown["licence"], shown["gated"]) == LICENCES["sd3.5-medium"]
    assert "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium" in shown["access"]
    assert (shown["native_steps"], shown["resolution"], shown["guidance_scale"]) == ("40", "1024x1024 pixels", 4.5)
    assert shown["parameters"]["vae"] == 83_819_683
    assert "text_encoder_3 9.52" in shown["fetch"]  # 4.762 G parameters in half precision
    assert "in bf16" in shown["memory"] and "with model.gradient_checkpointing 1.6 GB" in shown["memory"]
    assert shown["presets"] == [
        "flow-grpo-fast (only when named)",
        "flow-grpo-sd3.5-medium (pickscore)",
        "mixgrpo (only when named)",
    ]
    text = listed("sd3.5-medium")
    assert re.search(r"gated +│ yes", text) and "4,762,310,656" in text


@pytest.mark.parametrize(("name", "side"), [("sd-turbo", 512), ("lcm-dreamshaper-v7", 768), ("emoji-flow", 32)])
def test_pictures_have_the_side_that_the_summary_names(name, side):
    assert json.loads(listed(name, "--json"))["resolution"] == f"{side}x{side} pixels"
    assert f"{side}x{side}" in KNOWN[name].summary or name == "emoji-flow"


def test_a_model_of_the_package_needs_no_download_and_no_login():
    shown = json.loads(listed("emoji-flow", "--json"))
    assert (shown["weights"], shown["fetch"], shown["access"]) == (
        "in the package",
        "nothing: it is in the package",
        "",
    )


def test_nothing_is_invented_about_a_hub_pipeline():
    shown = json.loads(listed("somebody/something", "--json"))
    assert shown["weights"] == "hub: somebody/something"
    assert [shown[key] for key in ("licence", "gated", "native_steps", "resolution", "memory")] == [None] * 5
    assert re.search(r"licence +│ not known", listed("somebody/something"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models", "sd3.5"), "Did you mean 'sd3.5-medium'?"),
        (("rewards", "hpsv2"), "only 'list methods' and 'list models' take a name, got 'hpsv2' for rewards"),
    ],
)
def test_another_name_is_refused(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        CliRunner().invoke(cli, ["list", *arguments], catch_exceptions=False)


def test_the_page_of_the_models_says_the_same():
    """docs/models.md: | name | repository | licence | gated | steps, guidance | weights | memory |."""
    table = (ROOT / "docs" / "models.md").read_text().split("## Known transformers")[1].split("\n\n")[1]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    architectures = {name: published(name) for name in KNOWN}
    assert {row[0] for row in rows} == {
        n for n, files in architectures.items() if files and "transformer" in files.configs
    }
    for name, repository, licence, gated, steps, size, _memory in rows:
        model, shown = KNOWN[name], json.loads(listed(name, "--json"))
        assert (repository, licence, gated) == (model.location, model.licence, "yes" if model.gated else "no")
        assert steps.split(",")[0] == model.native_steps
        assert size == f"{float(shown['fetch'].split()[0]):.0f} GB"


def test_fetch_says_how_to_get_access_before_it_downloads(monkeypatch, capsys):
    printed = []

    def download(location, revision, hint):
        printed.append(capsys.readouterr().out)
        assert "hf auth login" in hint

    monkeypatch.setattr(fetch, "cached_pipeline", lambda repo, revision: None)
    monkeypatch.setattr(fetch, "find_pipeline", download)
    fetch.fetch_command(("sd3.5-medium",), dry_run=False)
    (before,) = printed
    page = "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium"
    assert f"sd3.5-medium is gated: accept the licence on {page} and log in (hf auth login)" in before
    monkeypatch.setattr(fetch, "cached_pipeline", lambda repo, revision: Path())
    fetch.fetch_command(("sd3.5-medium",), dry_run=False)
    assert "hf auth login" not in capsys.readouterr().out  # it is here already


def test_the_hub_library_has_the_login_command():
    """Before huggingface_hub 1.0 it was ``huggingface-cli login``."""
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", "auth", "login", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "hf auth login" in done.stdout
