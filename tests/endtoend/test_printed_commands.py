"""What a command prints to be typed next does what it says, in folders whose names need quoting."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from finished_run import call, copy_of, make, words_of
from suite_files import tiny_suite

import forked
from sdpo_bench.cli.commands import study
from sdpo_bench.cli.commands.export import loading_code
from sdpo_bench.cli.entry import main
from sdpo_bench.cli.main import cli
from sdpo_bench.errors import Unwritable, UsageError
from sdpo_bench.evaluation.evaluate import recorded_table
from sdpo_bench.models.base_model import load_policy
from sdpo_bench.models.policy import Policy
from sdpo_bench.results.compare_names import find_sides
from sdpo_bench.results.study_record import read_studies
from sdpo_bench.runs.adapter import LORA_FILE
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.runs.saved_adapter import load_adapter, read_adapter, save_adapter
from sdpo_bench.settings import EvaluationSettings, ModelSettings
from sdpo_bench.sweep import local_executor

ROOT = Path(__file__).parents[2]
BROKEN = "[variants.good]\n[variants.broken.update]\nlr = 1e30\n"
AWKWARD = 'it\'s a "folder"'


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_pipe):
    folder = tmp_path_factory.mktemp("made")
    return make(words_of(folder, tiny_pipe, "jpeg-compressibility", 4), folder / "out")


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of the run in the default results folder, where hints without a folder are meant to be typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return copy_of(made, tmp_path / "results")[1]


def printed(text: str, before: str = "") -> list[str]:
    """The words after ``sdpo-bench`` of the one command in the text."""
    (found,) = re.findall(rf"{re.escape(before)}sdpo-bench (.*)$", text, re.MULTILINE)
    return shlex.split(found)


def typed(capsys, *words):
    code, out, err = call(capsys, *words)
    assert code == 0, err
    return out + err


def code_of(text: str) -> str:
    """The indented Python lines under ``In Python:``."""
    lines = text.partition("In Python:\n")[2].splitlines()
    return "\n".join(line[2:] for line in lines if line.startswith("  "))


def exec_in(folder: Path, source: str) -> None:
    """What ``python -c SOURCE`` does in a folder, from no names but its own; for a forked process."""
    os.chdir(folder)
    exec(source, {})
    raise SystemExit(0)


def test_the_printed_python_loads_a_pipeline_that_leaves_out_parts(tmp_path):
    """emoji-flow has no T5; stock diffusers refuses Stable Diffusion 3 without it unless that is said."""
    policy = load_policy(ModelSettings(name="emoji-flow", text_tokens=0), lora_seed=0)
    for parameter in policy.lora_parameters().values():
        parameter.data += 0.05
    save_adapter(policy, tmp_path)
    names: dict = {}
    exec(loading_code(ModelSettings(name="emoji-flow"), tmp_path), names)
    loaded = {name: p for name, p in names["pipeline"].transformer.named_parameters() if "lora_B" in name}
    assert loaded and all(torch.equal(p, torch.full_like(p, 0.05)) for p in loaded.values())


@pytest.mark.parametrize("model", ["tiny", "emoji-turbo"])
def test_the_exported_adapter_is_loaded_by_the_printed_python(made, tiny_pipe, tmp_path, capsys, model):
    """In a process of its own, to the outputs of the tuned model. emoji-turbo's text encoder is stored in float16."""
    target = tmp_path / AWKWARD
    if model == "tiny":
        name = str(shutil.copytree(tiny_pipe, tmp_path / f"{AWKWARD} model"))
        run = copy_of(made, tmp_path / "results")[1]
        record = (run.path / "run.json").read_text()
        assert str(tiny_pipe) in record
        code = loading_code(ModelSettings(name=name), target)
        policy = load_policy(ModelSettings(name=name), lora_seed=0)
        load_adapter(policy, run.lora)
        save_adapter(policy, target)
        said = typed(capsys, "export", run.run_id, "--to", tmp_path / "other", "--results", tmp_path / "results")
        loading = loading_code(ModelSettings(name=str(tiny_pipe)), tmp_path / "other")
        assert code_of(said).startswith(f"{loading}\n")  # the call that draws a picture follows
    else:
        policy = load_policy(ModelSettings(name=model, lora_rank=8), lora_seed=0)
        for parameter in policy.lora_parameters().values():
            parameter.data += 0.05
        save_adapter(policy, target)
        code = loading_code(ModelSettings(name=model), target)
    side = policy.latent_shape[-1]
    latents = torch.randn(1, policy.latent_shape[0], side, side, generator=torch.Generator().manual_seed(3))
    torch.save(latents, tmp_path / "latents.pt")
    rest = (
        'latents = torch.load("latents.pt", weights_only=True)\n'
        'texts, _ = pipeline.encode_prompt(["cat"], "cpu", 1, False)\n'
        "with torch.no_grad():\n"
        "    out = pipeline.unet(latents, torch.tensor([999]), texts).sample\n"
        'torch.save(out, "out.pt")\n'
        'pipeline("cat", num_inference_steps=1, guidance_scale=1.0)\n'
    )
    out, err = tmp_path / "said", tmp_path / "err"
    assert forked.exit_code(lambda: exec_in(tmp_path, f"{code}\n{rest}"), out, err) == 0, err.read_text()
    with torch.no_grad():
        ours = policy.predict(latents, torch.tensor([999]), policy.encode(["cat"]))
        with policy.reference():
            base = policy.predict(latents, torch.tensor([999]), policy.encode(["cat"]))
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert not torch.allclose(base, ours, atol=1e-4)


def test_export_prints_code_for_the_adapter_that_it_wrote(here, capsys):
    said = typed(capsys, "export", here.run_id, "--to", AWKWARD)
    names: dict = {}
    exec(code_of(said), names)
    assert said.splitlines()[-1] == str(Path(AWKWARD) / LORA_FILE)
    stored = read_adapter(Path(AWKWARD)).weights
    loaded = {n: p for n, p in names["pipeline"].unet.named_parameters() if "lora_" in n}
    assert len(loaded) == len(stored)
    for name, parameter in loaded.items():
        assert torch.equal(parameter, stored[re.sub(r"\.default_0\.", ".", name)])


def test_an_interrupted_run_is_finished_by_the_printed_command(tiny_pipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / AWKWARD
    words = [*words_of(tmp_path, tiny_pipe, "jpeg-compressibility", 4), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["sdpo-bench", *words])
        patch.setattr(Policy, "adapter", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        code, _, err = call(capsys, *words)
    assert code == 130, err
    typed(capsys, *printed(err, "Go on with:\n  "))
    (run,) = (RunFolder(p) for p in (out / "runs").iterdir() if not p.name.startswith("base-"))
    assert run.state == "done" and (run.path / "grid.png").exists()


def test_a_sweep_says_how_its_tables_are_made_and_failed_cells_are_tried_again(
    tiny_pipe, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(local_executor, "START_METHOD", "fork")
    out = tmp_path / AWKWARD
    suite = tiny_suite(tmp_path, tiny_pipe, BROKEN, method='["ddpo"]', images="4")
    words = ["sweep", str(suite), "--threads", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["sdpo-bench", *words])
    code, said, _ = call(capsys, *words)
    assert code == 1
    again = printed(said, "try them again: ")
    assert again == [*words, "--only-failed"]
    code, repeated, _ = call(capsys, *again)
    assert code == 1 and "1 failed" in repeated
    assert "ddpo" in typed(capsys, *printed(said, "tables: "))


def test_reports_say_how_scores_that_are_missing_or_damaged_are_made(here, capsys):
    whole = here.evaluation.read_bytes()
    here.evaluation.unlink()
    notice = next(line for line in typed(capsys, "report", "--format", "markdown").splitlines() if "bench eval" in line)
    typed(capsys, *printed(notice.rstrip("`| ")))
    assert here.evaluation.exists()
    here.evaluation.write_bytes(whole[:-50])
    code, _, err = call(capsys, "eval", here.run_id)
    assert code == 2 and "Delete it" in err
    here.evaluation.unlink()
    typed(capsys, *printed(err.rstrip(".\n"), "Delete it and run: "))
    assert here.evaluation.exists()


def test_a_finished_study_says_how_its_plots_are_made(made, tmp_path, monkeypatch, capsys):
    out = Path(shutil.copytree(made, tmp_path / AWKWARD))
    record = SimpleNamespace(study="budget", variant="small", runs={"done": 1})
    monkeypatch.setattr(study, "study_view", lambda record: None)
    monkeypatch.setattr(study, "print_study", lambda console, view: None)
    study._show(record, out, False)
    monkeypatch.chdir(tmp_path)
    words = printed(capsys.readouterr().out, "plots: ")
    page = Path(typed(capsys, *words).splitlines()[-1])
    assert page.exists()


def test_a_study_that_was_begun_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "measured_rates", lambda *arguments: ({}, "not measured"))
    out = tmp_path / AWKWARD
    (out / "studies" / "budget" / "runs").mkdir(parents=True)
    _, ((_, problem),) = read_studies(out)
    assert "nothing was run" in typed(capsys, *printed(problem, "Resume it with: "), "--dry-run")


def test_where_no_run_can_be_compared_the_printed_command_lists_them(made, tmp_path, capsys):
    out = Path(shutil.copytree(made, tmp_path / AWKWARD))
    with pytest.raises(UsageError) as refusal:
        find_sides(SimpleNamespace(runs=[], out=out), "sdpo", "base", {})
    assert "sdpo-jpeg" in typed(capsys, *printed(str(refusal.value), "See: "))


def test_a_served_reward_is_used_by_the_printed_command(monkeypatch, capsys, tmp_path):
    """While the service runs."""
    import uvicorn

    serve, said = uvicorn.Server.run, []

    def use(server, sockets):
        thread = threading.Thread(target=serve, args=(server, sockets), daemon=True)
        thread.start()
        try:
            words = printed(capsys.readouterr().err, "use it with: ")
            said.append(typed(capsys, *words, "--dry-run", "--out", tmp_path))
        finally:
            server.should_exit = True
            thread.join(60)

    monkeypatch.setattr(uvicorn.Server, "run", use)
    with pytest.raises(SystemExit) as stop:
        main(["serve-reward", "jpeg-compressibility", "--port", "0"])
    assert stop.value.code == 0
    assert "nothing was run" in said[0]


def test_a_folder_that_cannot_be_written_is_copied_by_the_printed_command(made, tmp_path):
    run = copy_of(made, tmp_path / AWKWARD)[1]
    run.set_status("interrupted")
    with pytest.raises(Unwritable) as refused:
        recorded_table(run, run, EvaluationSettings(), [], Unwritable("text", "Read-only file system"))
    said = str(refused.value)
    command = re.findall(r"in a copy of it: (cp -r .*), then the same command", said)[0]
    words = [str(tmp_path / "copy") if word == "COPY" else word for word in shlex.split(command)]
    subprocess.run(words, check=True, timeout=60)
    assert RunFolder(tmp_path / "copy" / "runs" / run.run_id).record() == run.record()


def said_in(path: Path) -> set[str]:
    """Every ``sdpo-bench COMMAND ...`` in what a source file prints, up to the end of the sentence.

    What is filled in later reads FILLED.
    """
    texts = []
    tree = ast.parse(path.read_text())
    others = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    others |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(v.value if isinstance(v, ast.Constant) else "FILLED" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in others:
            texts.append(node.value)
    return {line for text in texts for line in re.findall(r"sdpo-bench ([a-z][^.,;:()'`\n]*[^.,;:()'`\s])", text)}


PROSE = ("again", "on both sides", "version FILLED")
"""What follows the program's name where a sentence speaks of it."""


def test_every_hint_in_a_text_names_a_command_and_options_that_exist():
    sources = [p for folder in ("sdpo_bench", "rewards", "methods") for p in (ROOT / folder).rglob("*.py")]
    hints = {line for path in sources for line in said_in(path) if not line.startswith(PROSE)}
    assert {"list", "run", "eval", "sweep", "study", "report", "fetch", "doctor"} <= {x.split()[0] for x in hints}
    for hint in sorted(hints):
        first, *rest = hint.split()
        command = cli.get_command(click.Context(cli), first)
        assert command is not None, hint
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, hint
        if first == "list" and rest and rest[0] != "FILLED":
            kinds = next(p.type.choices for p in command.params if isinstance(p.type, click.Choice))
            assert rest[0] in kinds, hint
