"""The command line: what a person types, what comes back, and with which exit code."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import preload  # noqa: F401  # what the commands need, imported once for all of them
import pytest
import report_factory

import forked
from sdpo_bench.cli.entry import main
from sdpo_bench.config.run_id import training_id, versions_of
from sdpo_bench.results import run_list
from sdpo_bench.runs.saved_adapter import load_adapter, save_adapter
from sdpo_bench.system import console_text

QUICK = [
    "--set",
    "schedule.steps=2",
    "--set",
    "schedule.eta=0.5",
    "--set",
    "sample.images_per_epoch=4",
    "--set",
    "update.minibatch=2",
    "--set",
    "update.accumulation=1",
    "--set",
    "eval.steps=1,2",
    "--set",
    "eval.images_per_prompt=1",
    "--budget",
    "images=8",
    "--reward",
    "jpeg-incompressibility",
]


def call(*arguments, cwd=None, **environment):
    """The command in a forked process, with the cached hub files elsewhere where the environment says so."""
    import huggingface_hub.constants as hub

    def work():
        os.chdir(cwd or ".")
        os.environ.update(environment)
        hub.HF_HUB_CACHE = environment.get("HF_HUB_CACHE", hub.HF_HUB_CACHE)  # read when it was imported
        forked.command([str(word) for word in arguments])

    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = forked.exit_code(work, out, err)
        done = SimpleNamespace(returncode=code, stdout=out.read_text(), stderr=err.read_text())
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def few_prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "few.txt"
    path.write_text("# three prompts\ncat\ndog\nbee\n")
    return path


def quick_run(tiny_pipe, out, prompts, *more):
    named = ["--set", f"sample.prompts={prompts}", "--set", f"eval.train={prompts}"]
    return ["run", "--model", tiny_pipe, "--out", out, *QUICK, *named, *more]


def test_help_and_lists_never_import_torch():
    script = (
        "import sys, sdpo_bench.cli.entry as c\n"
        "for a in (['--help'], ['run', '--help'], ['list', 'methods'], ['list', 'rewards'], ['list', 'models'],\n"
        "          ['list', 'models', 'emoji-flow'], ['list', 'models', 'sd3.5-medium'], ['list', 'presets'],\n"
        "          ['list', 'prompts'], ['list', 'settings'], ['list', 'runs']):\n"
        "    try: c.main(a)\n"
        "    except SystemExit as stop: assert not stop.code, (a, stop.code)\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_lists_name_every_plugin_with_its_first_line():
    methods = {row["name"]: row["what"] for row in json.loads(call("list", "methods", "--json").stdout)}
    assert {"sdpo", "ddpo", "d3po", "sparse_dpo"} <= set(methods)
    assert all(methods.values())
    rewards = {row["name"] for row in json.loads(call("list", "rewards", "--json").stdout)}
    assert {"emoji-align", "emoji-style", "emoji-accuracy", "jpeg-compressibility", "jpeg-incompressibility"} <= {
        name.replace("_", "-") for name in rewards
    }
    settings = json.loads(call("list", "settings", "--json").stdout)
    assert all(row["meaning"] for row in settings), [r["setting"] for r in settings if not r["meaning"]]


MOST = str(2**31 - 1)
WRONG = [
    (["run", "--method", "spdo"], "unknown method 'spdo'", "sdpo"),
    (["run", "--reward", "emoji-aling"], "unknown reward 'emoji-aling'", "emoji"),
    (["run", "--model", "emoji-turbos"], "unknown model 'emoji-turbos'", "emoji-turbo"),
    (["run", "--model", "owner/name@main"], "a setting of its own", "--model owner/name --set model.revision=main"),
    (["run", "--preset", "embeded"], "unknown preset 'embeded'", "embedded"),
    (["run", "--set", "update.lrr=1"], "unknown setting 'update.lrr'", "update.lr"),
    (["run", "--set", "lr=1"], "unknown setting 'lr'", "Did you mean 'update.lr'?"),
    (["run", "--set", "model.dtype=bf16"], "unknown setting 'model.dtype'", "Did you mean 'model.precision'?"),
    (["run", "--dry-run", "--set", "checkpoint.prompts="], "checkpoint.prompts is empty. Name one", "out."),
    (["eval", "x", "--set", "eval.guidance=3"], "unknown setting 'eval.guidance'", "'eval.guidance_scale'?"),
    (["eval", "x", "--set", "eval.bank=3"], "unknown setting 'eval.bank'", "'eval.noise_bank'?"),
    (["run", "--set", "upd.lr=1"], "unknown setting 'upd.lr'", "update.lr"),
    (["run", "--set", "method.clip_rang=1"], "unknown setting 'method.clip_rang'", "method.clip_range"),
    (["run", "--set", "update.lr=fast"], "update.lr: got 'fast'", "number"),
    (["run", "--set", "update.lr=-1"], "update.lr: got -1", "greater than 0"),
    (["run", "--set", "schedule.steps=0"], "schedule.steps: got 0", "greater than or equal to 1"),
    (["run", "--set", "schedule.steps=1001"], "schedule.steps: got 1001", "less than or equal to 1000"),
    (["run", "--set", "schedule.steps=2.5"], "schedule.steps: got 2.5", "integer"),
    (["run", "--set", "schedule.steps=many"], "schedule.steps: got 'many'. Input should be a valid integer", "."),
    (["run", "--set", "eval.steps=0,1"], "eval.steps: got '0'", "greater than or equal to 1"),
    (["run", "--set", "eval.steps=0"], "eval.steps: got 0", "greater than or equal to 1"),
    (["run", "--set", "eval.steps=99999999"], "eval.steps: got 99999999", "less than or equal to 1000"),
    (["run", "--set", "eval.steps="], "eval.steps: got []. Tuple should have at least 1 item", "."),
    (["run", "--set", "update.betas=0.9,1"], "update.betas: got '1'", "less than 1"),
    (["run", "--set", "model.guidance_scale=1e30"], "model.guidance_scale: got 1e+30", "less than or equal to 1000"),
    (["run", "--set", "eval.guidance_scale=1e30"], "eval.guidance_scale: got 1e+30", "less than or equal to 1000"),
    (["run", "--set", "update.betas=0.5"], "update.betas: got [0.5], expected more items", "."),
    (
        ["run", "--set", "update.betas=0,0,0"],
        "update.betas: got ['0', '0', '0']. Tuple should have at most 2 items",
        ".",
    ),
    (
        ["run", "--dry-run", "--set", f"eval.images_per_prompt={10**20}"],
        f"eval.images_per_prompt: got {10**20}",
        "less than or equal to 10000",
    ),
    (
        ["run", "--dry-run", "--set", "sample.images_per_epoch=1000001"],
        "sample.images_per_epoch: got 1000001",
        "1000000",
    ),
    (["run", "--dry-run", "--set", "model.lora_rank=4097"], "model.lora_rank: got 4097", "less than or equal to 4096"),
    (
        ["run", "--dry-run", "--set", "model.resolution=8200"],
        "model.resolution: got 8200",
        "less than or equal to 8192",
    ),
    (["run", "--dry-run", "--set", f"eval.noise_bank={2**31}"], f"eval.noise_bank: got {2**31}", MOST),
    (["run", "--dry-run", "--method", "best_of_n", "--set", f"method.n={2**31}"], f"method.n: got {2**31}", MOST),
    (["run", "--dry-run", "--micro-batch", str(2**31)], f"{2**31} is not in the range", MOST),
    (["eval", "x", "--images", "10001"], "10001 is not in the range", "10000"),
    (["sample", "x", "--prompt", "cat", "--images", "10001"], "10001 is not in the range", "10000"),
    (["run", "--set", "update.order=random"], "update.order: got 'random'", "'step-shuffled'"),
    (["run", "--set", "schedule.eta=0"], "eta = 0", "schedule.eta"),
    (
        ["run", "--set", "schedule.steps=700"],
        "standard deviation is 0",
        "std_floor",
    ),
    (["run", "--set", "eval.sampler=lcm", "--set", "eval.eta=0.5"], "no eta", "0.5"),
    (["run", "--set", "sample.images_per_epoch=7"], "not a multiple of 2", "Use 6"),
    (["run", "--set", "update.minibatch=5"], "update.minibatch", "sample.images_per_epoch="),
    (["run", "--dry-run", "--set", "model.name="], "model.name is empty", "leave it out"),
    (["run", "--dry-run", "--set", "checkpoint.every=1"], "checkpoint.every would have", "--checkpoint-every"),
    (["run", "--set", "lr"], "--set takes section.key=value", "update.lr"),
    (["run", "--budget", "pictures=3"], "unknown budget axis 'pictures'", "images"),
    (["run", "--budget", "images=-3"], "positive number", "images=3000"),
    (["run", "--budget", "images=3001"], "not a multiple of 2", "images=3000"),
    (["run", "--budget", "images=many"], "not an amount", "images=3000"),
    (["run", "--budget", "reward_calls=2"], "less than one prompt group", "larger --budget"),
    (["run", "--seed", "-1"], "-1", "range"),
    (["run", "--dry-run", "--seed", str(2**63)], "a whole number from 0 to 2**63 - 1", str(2**63 - 1)),
    (["run", "--device", "tpu"], "unknown device 'tpu'", "cpu"),
    (["run", "--set", "eval.steps=1-4"], "eval.steps: got '1-4'", "A list names every number, e.g. eval.steps=1,2,4."),
    (["run", "--seed", "0-2"], "'0-2' is several seeds.", "Write --seeds 0-2."),
    (["run", "--reward", "./bad.py:Bad"], "'./bad.py:Bad' is a single file", "sdpo-bench new reward NAME"),
    (["run", "--set", "sample.prompts=nowhere.txt"], "unknown prompt set", "simple-animals"),
    (["run", "--set", "sample.prompts=nowhere.txt"], "There is no file '", "nowhere.txt' either. Valid: "),
    (["run", "--method", "d3po", "--set", "advantage.gamma=0.5"], "no effect", "advantage.gamma"),
    (["run", "--method", "sparse_dpo", "--set", "update.order=step-shuffled"], "whole trajectories", "accumulated"),
    (["run", "--set", "model.lora_targets=conv9"], "fit no module", "to_q"),
    (["run", "--reward-timeout", "nan"], "nan", "not in the range"),
    (["run", "--preset", "typo.toml"], "[for.ddop]", "Did you mean 'ddpo'"),
    (
        ["run", "--preset", "away.toml"],
        "[for.my-method] is for a method that is not installed. Valid: awm, best-of-n, d3po",
        "install the plugin that brings the method, or remove the section",
    ),
    (["run", "--method", "x", "--reward-timeout", "inf"], "inf is not in the range", MOST),
    (["run", "--method", "x", "--threads", "1025"], "1025 is not in the range", "x<=1024"),
    (["sweep", "x", "--jobs", "1025"], "'--jobs': 1025 is not in the range", "1<=x<=1024"),
    (["sweep", "x", "--cpus-per-cell", "1025"], "'--cpus-per-cell': 1025 is not in the range", "1<=x<=1024"),
    (["sweep", "x", "--gpus-per-cell", "inf"], "'--gpus-per-cell': inf is not in the range", "0<=x<=1024"),
    (["sweep", "x", "--max-hours", "inf"], "'--max-hours': inf is not in the range", MOST),
    (["study", "x", "--jobs", "1025"], "'--jobs': 1025 is not in the range", "1<=x<=1024"),
    (["serve-reward", "x", "--max-mib", "16385"], "'--max-mib': 16385 is not in the range", "1<=x<=16384"),
    (["serve-reward", "x", "--body-timeout", "inf"], "inf is not in the range", MOST),
    (["sweep", "smoke", "--max-hours", "nan"], "nan", "not in the range"),
    (["serve-reward", "jpeg-compressibility", "--body-timeout", "nan"], "nan", "not in the range"),
    (["sweep", "smoke", "--jobs", "3", "--device", "cpu,,cpu"], "unknown device ''", "Valid: auto, cpu, cuda"),
    (["study", "reward-prediction", "--size", "tiny", "--device", "tpu"], "unknown device 'tpu'", "Valid: auto"),
    (["run", "--seed", "0", "--seed", "1"], "--seed is given 2 times and takes one value", "--seeds 0-4"),
    (["run", "--budget", "images=64", "--budget", "seconds=9"], "--budget is given 2 times", "Give it once"),
    (["eval", "x", "--out", "a", "--results", "b"], "--results / --out is given 2 times", "Give it once"),
    (["run", "--budget", "seconds=5min"], "'5min' is not an amount of seconds", "--budget seconds=3000"),
    (["report", "--results", "results/runs"], "'results/runs' is the folder of the runs", "above it: 'results'"),
    (["run", "--budget", "images=64", "--set", "budget.seconds=9"], "one budget axis, got images, seconds", "Keep one"),
    (["rum"], "no command 'rum'", "run"),
    (["eval", "nothing"], "no run 'nothing'", "list runs"),
    (["export", "nothing", "--to", "x"], "no run 'nothing'", "list runs"),
]


@pytest.mark.parametrize(("arguments", "said", "hint"), WRONG, ids=[" ".join(a)[:60] for a, _, _ in WRONG])
def test_wrong_input_gets_one_clear_message(tmp_path, monkeypatch, capsys, arguments, said, hint):
    from sdpo_bench.cli.entry import main

    monkeypatch.chdir(tmp_path)
    Path("away.toml").write_text("[for.my-method.update]\nlr = 1e-3\n")
    Path("typo.toml").write_text("[for.ddop.update]\nlr = 1e-3\n")
    Path("results/runs").mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2, message
    assert said in message
    assert message.count(": got ") <= 1, message
    assert hint in message
    assert "Traceback" not in message
    assert not list(tmp_path.rglob("run.json")), "nothing half-written"


EMPTY = [
    *(
        ["run", "--dry-run", option, ""]
        for option in (
            "--preset",
            "--method",
            "--reward",
            "--model",
            "--budget",
            "--results",
            "--out",
            "--device",
            "--set",
        )
    ),
    ["run", "--dry-run", "--model="],
    ["run", "--dry-run", "--model", " "],
    ["eval", "x", "--rewards", ""],
    ["eval", "x", "--steps", ""],
    ["eval", ""],
    ["compare", "", "ddpo"],
    ["sweep", "smoke", "--dry-run", "--device", ""],
    ["study", "budget", "--dry-run", "--model", ""],
    ["study", "budget", "--dry-run", "--seeds", ""],
    ["report", "--out", ""],
    ["export", "x", "--to", ""],
    ["sample", "x", "--prompt", "a", "--out", ""],
    ["doctor", "--plugin", ""],
    ["list", "runs", "--out", ""],
]


@pytest.mark.parametrize("arguments", EMPTY, ids=" ".join)
def test_an_empty_name_does_not_mean_choose_for_me(tmp_path, monkeypatch, capsys, arguments):
    from sdpo_bench.cli.entry import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2, message
    assert "is empty (a shell variable that is not set?)" in message


def test_an_empty_prompt_is_a_prompt(tmp_path, monkeypatch, capsys):
    from sdpo_bench.cli.entry import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["sample", "nothing", "--prompt", ""])
    assert "no run 'nothing'" in capsys.readouterr().err


CONTRADICTIONS = [
    (["--method", "sdpo", "--set", "method.name=ddpo"], "--method sdpo and --set method.name=ddpo"),
    (["--reward", "emoji-align", "--set", "reward.name=emoji-style"], "--reward emoji-align and --set reward.name="),
    (["--model", "emoji-turbo", "--set", "model.name=sd-turbo"], "--model emoji-turbo and --set model.name=sd-turbo"),
    (["--seed", "1", "--set", "seed=2"], "--seed 1 and --set seed=2"),
    (["--seed", "0", "--set", "seed=2"], "--seed 0 and --set seed=2"),
    (["--budget", "images=64", "--set", "budget.images=32"], "--budget images=64 and --set budget.images=32"),
]


@pytest.mark.parametrize(("arguments", "said"), CONTRADICTIONS)
def test_a_flag_and_a_setting_that_differ_are_refused(tmp_path, monkeypatch, capsys, arguments, said):
    from sdpo_bench.cli.entry import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--dry-run", *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


VOID = [
    (["run", "--dry-run", "--set", "update.lr=1", "--set", "update.lr=2"], "--set update.lr=1 and --set update.lr=2"),
    (["eval", "x", "--steps", "1,2", "--set", "eval.steps=4"], "--steps 1,2 and --set eval.steps=4"),
    (["eval", "x", "--images", "2", "--set", "eval.images_per_prompt=4"], "--images 2 and --set eval.images_per_pro"),
    (["eval", "x", "--unseen", "a", "--set", "eval.unseen=b"], "--unseen a and --set eval.unseen=b"),
    (["eval", "x", "--validation", "a", "--set", "eval.validation=b"], "--validation a and --set eval.validation=b"),
    (["eval", "x", "--rewards", "a", "--set", "eval.rewards=b"], "--rewards a and --set eval.rewards=b"),
    (["study", "reward-prediction", "--dry-run", "--jobs", "2"], "--jobs 2: 'reward-prediction' trains nothing"),
    (["study", "reward-prediction", "--dry-run", "--set", "update.lr=1"], "--set update.lr: 'reward-prediction' trai"),
    (["study", "reward-prediction", "--dry-run", "--set", "seed=1"], "--seeds 0,1,2"),
    (["study", "reward-prediction", "--dry-run", "--set", "model.name=sd-turbo"], "--model NAME"),
    (["study", "reward-prediction", "--dry-run", "--set", "reward.name=hpsv2"], "--reward NAME"),
    (["study", "reward-prediction", "--dry-run", "--set", "method.name=ddpo"], "methods of its own choice"),
    (["study", "budget", "--dry-run", "--set", "budget.images=64"], "--size FACTOR"),
    (["study", "budget", "--dry-run", "--device", "cpu,cpu"], "names 2 devices, and --jobs 1 uses 1 of them"),
    (["sweep", "smoke", "--dry-run", "--device", "cpu,cpu"], "names 2 devices, and --jobs 1 uses 1 of them"),
    (["sweep", "smoke", "--dry-run", "--executor", "ray", "--jobs", "2"], "belong to --executor local"),
    (["sweep", "smoke", "--dry-run", "--executor", "ray", "--device", "cpu,cpu"], "--gpus-per-cell 1 and one name"),
    (["sweep", "smoke", "--dry-run", "--address", "x:1"], "belong to --executor ray"),
    (["report", "--format", "csv", "--out", "a.html"], "--format csv and --out a.html contradict"),
    (["report", "--format", "all", "--out", "a.html"], "--format all and --out a.html contradict"),
]


@pytest.mark.parametrize(("arguments", "said"), VOID, ids=[" ".join(a)[:70] for a, _ in VOID])
def test_an_option_that_would_void_another_is_refused(tmp_path, monkeypatch, capsys, arguments, said):
    from sdpo_bench.cli.commands import study, sweep
    from sdpo_bench.cli.entry import main

    for module in (study, sweep):
        monkeypatch.setattr(module, "measured_rates", lambda *arguments: ({}, "takes long"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and said in message, message
    assert not list(tmp_path.iterdir())


def test_the_same_value_twice_is_no_contradiction(tmp_path, monkeypatch, capsys):
    from sdpo_bench.cli.entry import main

    monkeypatch.chdir(tmp_path)
    for words in (["--set", "eval.steps=4", "--steps", "4"], ["--set", "eval.steps=1, 2", "--steps", "1,2"]):
        with pytest.raises(SystemExit):
            main(["eval", "x", *words])
        assert "no run 'x'" in capsys.readouterr().err


def test_a_folder_that_is_no_pipeline(tmp_path):
    done = call("run", "--model", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "model_index.json" in done.stderr


def test_a_device_that_is_not_here(tmp_path):
    done = call("run", "--device", "cuda:7", cwd=tmp_path)
    assert done.returncode == 3
    assert "--device cpu" in done.stderr


def test_hub_weights_that_cannot_be_reached(tmp_path):
    cache = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = call("run", "--model", "nobody/nothing", "--reward", "jpeg-compressibility", cwd=tmp_path, **cache)
    assert done.returncode == 3, done.stderr
    assert "Type: sdpo-bench fetch nobody/nothing" in " ".join(done.stderr.split())
    done = call("fetch", "nobody/nothing", **cache)
    assert done.returncode == 3, done.stderr
    assert "neither cached here nor reachable" in done.stderr


def test_a_results_folder_that_cannot_be_written(tmp_path, tiny_pipe):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    done = call("run", "--model", tiny_pipe, "--reward", "jpeg-compressibility", "--out", blocked / "results")
    assert done.returncode == 3, done.stderr
    assert "cannot be written" in done.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    done = call("run", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["state"] == "new"
    assert plan["cost_per_epoch"]["images"] == plan["config"]["sample"]["images_per_epoch"]
    assert plan["sources"]["update.lr"].startswith("preset")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("budget", "said"), [("seconds=0.0001", "0.0001 seconds"), ("images=1.5M", "1,500,000 images")]
)
def test_a_dry_run_names_the_budget_that_was_given(tmp_path, budget, said):
    done = call("run", "--dry-run", "--budget", budget, cwd=tmp_path)
    assert f"stops at {said};" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (["--method", "sdpo", "--reward", "hpsv2"], "precision: fp16, gradients scaled (initial scale 65536)\n"),
        (["--set", "model.precision=fp16", "--method", "best_of_n"], "precision: fp16\n"),
        ([], "precision: fp32\n"),
    ],
)
def test_a_dry_run_says_whether_gradients_are_scaled(tmp_path, chosen, said):
    """The paper's presets are fp16, as the official code; methods that train nothing have no gradients."""
    assert said in call("run", "--dry-run", *chosen, cwd=tmp_path).stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory, few_prompts):
    """A finished run of the tiny pipeline, as the command line makes it."""
    from places import OFFICIAL

    out = tmp_path_factory.mktemp("results")
    done = call(*quick_run(OFFICIAL / "tiny_pipe", out, few_prompts))
    assert done.returncode == 0, done.stderr
    return out, Path(done.stdout.strip().splitlines()[-1]), done


def test_a_run_leaves_everything_in_its_folder(finished):
    _, folder, done = finished
    names = {p.name for p in folder.iterdir()}
    assert {
        "run.json",
        "status",
        "train.jsonl",
        "timing.jsonl",
        "eval.parquet",
        "lora",
        "grid.png",
        "checkpoints",
    } <= names
    assert json.loads((folder / "status").read_text())["state"] == "done"
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["schedule"]["steps"] == 2
    resolved = {
        "sampler": "ddim",
        "steps": 2,
        "eta": 0.5,
        "spacing": "trailing",
        "prev_timestep": "grid",
        "std_floor": 0,
        "overruled": {},
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
    }
    assert resolved.items() <= record["schedule"].items()
    assert set(record["plugin_sha256"]) == {"method", "reward"}
    assert "SE over images" in done.stdout
    assert "1 training seed" in done.stdout
    assert "8 images" in done.stdout


def test_a_run_is_judged_by_the_evaluation_settings_and_not_by_those_of_its_training(finished):
    """Beside the base model, which no training schedule has touched."""
    import pandas as pd

    out, folder, _ = finished
    (base,) = (out / "runs").glob("base-*")
    for run in (folder, base):
        rows = pd.read_parquet(run / "eval.parquet")
        assert set(rows.sampler) == {"ddim trailing eta=1 guidance=1 sample bank=0"}
        assert set(rows.steps) == {1, 2}


def test_a_finished_run_is_shown_again_and_not_repeated(finished, tiny_pipe, few_prompts):
    out, folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name not in ("status", "lock")}
    done = call(*quick_run(tiny_pipe, out, few_prompts, "--json"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["trained_now"] is False
    assert {row["steps"] for row in result["table"]} == {1, 2}
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_an_edited_prompt_file_is_another_run(tmp_path):
    """Or a run would go on with prompts that it did not begin with, and a finished one be taken for the new one."""
    path = tmp_path / "mine.txt"
    ids = []
    for text in ("cat\ndog\n", "cat\nbee\n", "# the first again\ncat\ndog\n"):
        path.write_text(text)
        done = call("run", "--dry-run", "--json", "--set", f"sample.prompts={path}", cwd=tmp_path)
        ids.append(json.loads(done.stdout)["run"])
    assert ids[0] != ids[1] and ids[0] == ids[2]


@pytest.mark.parametrize("key", ["sample.prompts", "eval.train", "eval.unseen"])
def test_a_dry_run_refuses_prompts_that_are_not_there(tmp_path, key):
    done = call("run", "--dry-run", "--set", f"{key}=simple-animal", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "unknown prompt set 'simple-animal'. Did you mean 'simple-animals'?" in done.stderr


def test_another_seed_is_another_run(finished, tiny_pipe, few_prompts):
    out, folder, _ = finished
    done = call(*quick_run(tiny_pipe, out, few_prompts, "--seed", "5", "--dry-run", "--json"))
    assert json.loads(done.stdout)["run"] != folder.name


def test_eval_adds_rows_and_keeps_the_others(finished):
    import pandas as pd

    out, folder, _ = finished
    before = pd.read_parquet(folder / "eval.parquet")
    done = call("eval", folder.name[:12], "--out", out, "--steps", "1,3", "--rewards", "jpeg-compressibility", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    none = call("eval", folder.name, "--out", out, "--rewards", ",")
    assert none.returncode == 2 and "--rewards ',' names no reward" in none.stderr
    assert {row["steps"] for row in result["table"]} == {1, 3}
    after = pd.read_parquet(folder / "eval.parquet")
    keys = ["split", "prompt", "image", "steps", "reward"]
    merged = before.merge(after, on=keys, suffixes=("", "_after"))
    assert len(merged) == len(before)
    assert (merged.score == merged.score_after).all()
    assert set(after.reward) == {"jpeg-incompressibility", "jpeg-compressibility"}


def test_eval_refuses_a_pipeline_that_has_changed(finished, tmp_path):
    _, folder, _ = finished
    copy = shutil.copytree(folder, tmp_path / "copy")
    record = json.loads((copy / "run.json").read_text())
    other = record | {"model_digest": "0" * 16}  # of a run that was trained on another content of the folder
    other["run"] = training_id(other["config"], versions_of(other))
    (copy / "run.json").write_text(json.dumps(other))
    for words in (["eval", copy], ["sample", copy, "--prompt", "cat", "--out", tmp_path / "x.png"]):
        done = call(*words, "--results" if words[0] == "sample" else "--out", tmp_path)
        assert done.returncode == 2, done.stdout
        assert "has changed since run" in done.stderr


def test_exported_lora_works_in_stock_diffusers(finished, tiny_pipe, tmp_path):
    """To the outputs of the tuned model, which are not those of the base."""
    import torch
    from diffusers import StableDiffusionPipeline

    from sdpo_bench.models.base_model import load_policy
    from sdpo_bench.runs.run_folder import RunFolder
    from sdpo_bench.settings import ModelSettings
    from sdpo_bench.training import checkpoint

    out, folder, _ = finished
    done = call("export", folder.name, "--to", tmp_path / "lora", "--out", out)
    assert done.returncode == 0, done.stderr
    again = call("export", folder.name, "--to", tmp_path / "lora", "--out", out)
    assert again.returncode == 2
    assert "--force" in again.stderr
    own = call("export", folder.name, "--to", folder / "lora", "--force", "--out", out)
    assert own.returncode == 2 and "--to" in own.stderr and "lies among the runs" in own.stderr
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipe, dtype=torch.float32, safety_checker=None)
    tuned = load_policy(ModelSettings(name=str(tiny_pipe)), lora_seed=9)
    newest, _ = checkpoint.latest(RunFolder(folder))  # what was trained, not what was saved of it
    trained = checkpoint.read(newest)[1]
    for name, parameter in tuned.lora_parameters().items():
        parameter.data = trained[f"lora/{name}"]
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([999, 499])
    conditioning = tuned.encode(["cat", "dog"])
    texts = conditioning.positive["encoder_hidden_states"]
    with torch.no_grad():
        base = pipeline.unet(latents, times, texts).sample
        pipeline.load_lora_weights(str(tmp_path / "lora"), weight_name="pytorch_lora_weights.safetensors")
        theirs, ours = pipeline.unet(latents, times, texts).sample, tuned.predict(latents, times, conditioning)
    assert torch.allclose(theirs, ours, atol=1e-6) and not torch.allclose(theirs, base, atol=1e-5)


def test_a_damaged_adapter_is_not_exported(finished, tmp_path):
    _, folder, _ = finished
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "lora" / "pytorch_lora_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = call("export", copy, "--to", tmp_path / "exported")
    assert done.returncode == 2, done.stdout
    assert "is damaged" in done.stderr and not (tmp_path / "exported").exists()


def test_saved_adapter_gives_the_tuned_outputs_bit_for_bit(tiny_policy, tiny_pipe, tmp_path):
    import torch

    from sdpo_bench.models.base_model import load_policy
    from sdpo_bench.settings import ModelSettings

    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([999, 499])
    save_adapter(tiny_policy, tmp_path)
    fresh = load_policy(ModelSettings(name=str(tiny_pipe)), lora_seed=9)
    load_adapter(fresh, tmp_path)
    with torch.no_grad():
        conditioning = tiny_policy.encode(["cat", "dog"])
        assert torch.equal(
            fresh.predict(latents, times, conditioning), tiny_policy.predict(latents, times, conditioning)
        )


@pytest.mark.parametrize(
    ("sent", "code", "again"),
    [
        (signal.SIGINT, 130, False),
        (signal.SIGTERM, 143, False),
        (signal.SIGTERM, 143, True),
        (signal.SIGHUP, 129, True),
    ],
)
def test_an_interrupted_run_says_how_to_resume_and_then_does(tmp_path, tiny_pipe, few_prompts, sent, code, again):
    """Also where a scheduler repeats its signal."""
    arguments = quick_run(tiny_pipe, tmp_path, few_prompts, "--checkpoint-every", "1")
    arguments[arguments.index("images=8")] = "images=400"
    out, err = tmp_path / "said", tmp_path / "err"

    def work():
        forked.heed_signals()
        forked.command([str(word) for word in arguments])

    child = forked.start(work, out, err)
    ended = None
    try:
        while not list(tmp_path.rglob("epoch-000002.safetensors")) and ended is None:
            ended = forked.wait(child, 0.05)
        while ended is None:
            os.kill(child, sent)
            ended = forked.wait(child, 0.001 if again else 240)
    finally:
        if ended is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    said = err.read_text()
    assert ended == code, said
    assert "Go on with" in said
    assert "Traceback" not in said
    (folder,) = [p.parent for p in tmp_path.rglob("train.jsonl")]
    assert json.loads((folder / "status").read_text())["state"] == "interrupted"
    epochs = [json.loads(line)["epoch"] for line in (folder / "train.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.fixture
def copied(finished, tmp_path):
    """A results folder with the finished run, to be harmed."""
    from sdpo_bench.runs.run_folder import RunFolder

    shutil.copytree(finished[0], tmp_path / "out")
    return tmp_path / "out", RunFolder(tmp_path / "out" / "runs" / finished[1].name)


@pytest.mark.parametrize(("state", "after"), [("done", "done"), ("failed", "failed"), ("", "unknown")])
def test_a_damaged_evaluation_is_mended_by_the_advice_given(copied, tiny_pipe, few_prompts, state, after):
    """A finished run stays one whatever its scores; one whose judging had failed becomes one by ``eval``."""
    out, run = copied
    (run.path / "status").write_text(json.dumps({"state": state, "message": "disk full"}) if state else "")
    run.evaluation.write_bytes(b"")
    done = call(*quick_run(tiny_pipe, out, few_prompts))
    assert done.returncode == 2 and f"sdpo-bench eval {run.run_id}" in done.stderr
    assert run.state_or_unknown == after
    run.evaluation.unlink()
    done = call("eval", run.run_id, "--out", out)
    assert done.returncode == 0, done.stderr
    assert run.state == "done"


def test_a_damaged_status_or_clock_costs_no_result(copied, tiny_pipe, few_prompts):
    out, run = copied
    (run.path / "status").write_text("")
    (run.path / "timing.jsonl").write_text('5\n{}\n{"seconds": "x"}\n{"seconds": 2.5}\n')
    done = call(*quick_run(tiny_pipe, out, few_prompts))
    assert done.returncode == 0, done.stderr
    assert run.state == "done" and "2 s of training" in done.stdout


def test_a_run_that_is_named_by_its_folder_keeps_its_base_model_s_scores_beside_it(copied, tmp_path, monkeypatch):
    """Wherever the command is given: a report on the run's own results looks for them there."""
    out, run = copied
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(run.path), "--steps", "3"])
    assert stop.value.code == 0
    (base,) = (out / "runs").glob("base-*")
    for folder in (run.path, base):
        assert 3 in set(pd.read_parquet(folder / "eval.parquet").steps)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_damaged_scores_of_the_base_model_name_a_command_that_mends_them(copied, tiny_pipe, few_prompts):
    out, run = copied
    (base,) = (out / "runs").glob("base-*")
    (base / "eval.parquet").write_bytes(b"PAR1")
    done = call(*quick_run(tiny_pipe, out, few_prompts))
    assert done.returncode == 2 and "Delete it and run: sdpo-bench eval RUN" in done.stderr
    (base / "eval.parquet").unlink()
    assert call("eval", run.run_id, "--out", out).returncode == 0
    assert (base / "eval.parquet").exists()


def test_two_processes_do_not_work_on_one_run(finished, tiny_pipe, few_prompts):
    from sdpo_bench.runs.run_folder import RunFolder

    out, folder, _ = finished
    with RunFolder(folder).locked():
        done = call(*quick_run(tiny_pipe, out, few_prompts))
    assert done.returncode == 2
    assert "another process" in done.stderr


def test_fetch_prints_sizes_first_and_says_when_the_hub_is_out_of_reach(tmp_path):
    cache = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    plan = call("fetch", "hpsv2", "sd-turbo", "emoji-turbo", "--dry-run", **cache)
    assert plan.returncode == 0, plan.stderr
    assert "xswu/HPSv2: HPS_v2_compressed.pt (1.97 GB)" in plan.stdout
    assert "sd-turbo: stabilityai/sd-turbo" in plan.stdout
    assert "emoji-turbo" not in plan.stdout, "the embedded model is in the package"
    for name in ("hpsv2", "sd-turbo"):
        done = call("fetch", name, **cache)
        assert done.returncode == 3, done.stderr
        assert "Type the same command again" in done.stderr
    unknown = call("fetch", "hpsv3")
    assert unknown.returncode == 2
    assert "Did you mean 'hpsv2'" in unknown.stderr


def test_missing_weights_are_found_before_anything_is_sampled(tmp_path, tiny_pipe):
    cache = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = call(
        "run",
        "--model",
        tiny_pipe,
        "--reward",
        "hpsv2",
        "--out",
        tmp_path / "out",
        "--set",
        "schedule.steps=2",
        **cache,
    )
    assert done.returncode == 3, done.stderr
    assert "sdpo-bench fetch hpsv2" in done.stderr
    assert not list(tmp_path.rglob("run.json"))


def test_completion_scripts():
    for shell in ("bash", "zsh", "fish"):
        assert "_SDPO_BENCH_COMPLETE" in call("completion", shell).stdout
    done = call(COMP_WORDS="sdpo-bench run --method sd", COMP_CWORD="3", _SDPO_BENCH_COMPLETE="bash_complete")
    assert "plain,sdpo" in done.stdout


@pytest.mark.parametrize(("width", "whole"), [(60, False), (80, False), (120, True)])
def test_names_stay_in_one_piece_on_a_narrow_terminal(width, whole, monkeypatch, capsys):
    """Rows become paragraphs where a table would have to break the run ids that people copy."""
    run = "sdpo-emoji_align-emoji_turbo-s0-3da9a2370b"
    monkeypatch.setattr(console_text.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    console_text.print_table(
        ["run", "state", "budget used", "score - base", "judged by", "message"],
        [[run, "done", "2,048 of 2,048 images", "0.1655", "emoji-align, train", ""]],
    )
    out = capsys.readouterr().out
    assert run in out
    assert ("\u2502" in out) is whole
    assert whole or ("budget used: 2,048 of 2,048 images" in out and "message" not in out)


@pytest.mark.parametrize(
    ("width", "gone"),
    [
        (200, ""),
        (140, "judged by, reward, seed, method"),
        (105, "judged by, reward, seed, method, date, training time"),
        (80, "judged by, reward, seed, method, date, training time, budget used"),
    ],
)
def test_a_narrow_terminal_lists_runs_with_fewer_columns(width, gone, monkeypatch, capsys):
    """One line a run as long as its name, state and score fit."""
    monkeypatch.setattr(console_text.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    run = "sdpo-emoji_align-emoji_turbo-s0-3da9a2370b"
    rest = ["2026-01-02 03:04", "12 min", "sdpo", "emoji-align", "0", "2,048 of 2,048 images", "0.1655"]
    row = [run, "done", *rest, "emoji-align, train", ""]
    console_text.print_table(run_list.COLUMNS, [row], optional=run_list.OPTIONAL, see="sdpo-bench list runs --json")
    lines = capsys.readouterr().out.splitlines()
    kept = [cell for name, cell in zip(run_list.COLUMNS, row) if name not in gone.split(", ")]
    assert [cell.strip() for cell in lines[3].strip("\u2502").split("\u2502")] == kept
    assert len(lines[3]) <= width
    assert lines[5:] == ([f"No room for: {gone}. With them: sdpo-bench list runs --json"] if gone else [])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("see its traceback:\nlib.so: failed to map segment from shared object"),
    ],
)
def test_a_full_memory_is_no_defect(tmp_path, monkeypatch, capsys, error):
    from sdpo_bench.cli.entry import main

    def fail(out):
        raise error

    monkeypatch.setattr("sdpo_bench.library.reports.load_results", fail)
    with pytest.raises(SystemExit) as stop:
        main(["report", "--results", str(tmp_path)])
    said = capsys.readouterr().err
    assert stop.value.code == 3 and "out of memory (" in said and "the same command goes on" in said
    assert "defect" not in said and "traceback" not in said


def test_a_broken_place_for_progress_does_not_end_a_run(tmp_path, tiny_pipe, few_prompts):
    words = [str(word) for word in quick_run(tiny_pipe, tmp_path / "out", few_prompts, "--json")]
    code = forked.exit_code(lambda: forked.command(words), tmp_path / "said", Path("/dev/full"))
    assert code == 0
    assert json.loads((tmp_path / "said").read_text())["trained_now"]


@pytest.fixture(scope="module")
def two_methods(tmp_path_factory):
    """A results folder that a report and a comparison can be made of."""
    out = tmp_path_factory.mktemp("two") / "results"
    report_factory.make_base(out, report_factory.base_frame(report_factory.spread([0, 0, 0])))
    for method in ("sdpo", "ddpo"):
        report_factory.make_run(out, method, 0, report_factory.spread([1, 1, 1]))
    return out


def is_one_line_about_a_full_disk(code, said):
    """One line, not two: what is left in the buffer is not tried again at the exit."""
    assert code == 3, said
    (line,) = said.splitlines()
    assert line.startswith("Error: ") and "No space left on device." in line


@pytest.mark.parametrize("words", ["-m sdpo_bench list settings", "-u -m sdpo_bench list settings"])
def test_a_full_standard_output_is_named(tmp_path, words):
    with open("/dev/full", "w") as full:
        command = [sys.executable, *words.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=240, cwd=tmp_path)
    is_one_line_about_a_full_disk(done.returncode, done.stderr)


@pytest.mark.parametrize("words", ["list runs --json", "report", "compare sdpo ddpo"])
def test_a_full_standard_output_is_named_by_commands_that_read_results(two_methods, tmp_path, words):
    command = [*words.split(), "--results", str(two_methods)]
    code = forked.exit_code(lambda: forked.command(command), Path("/dev/full"), tmp_path / "err")
    is_one_line_about_a_full_disk(code, (tmp_path / "err").read_text())


def test_another_full_disk_is_not_taken_for_standard_output(tmp_path, monkeypatch, capsys):
    from sdpo_bench.cli import entry
    from sdpo_bench.cli.commands import list

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "elsewhere")

    monkeypatch.setattr(list, "show", full)
    with pytest.raises(SystemExit) as stop:
        entry.main(["list", "runs"])
    assert stop.value.code == 3
    message = capsys.readouterr().err
    assert "'elsewhere': No space left on device" in message and "standard output" not in message
