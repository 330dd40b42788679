"""``sdpo-bench sample``: see what a run has learnt, on any prompt and at any number of steps."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.runs.adapter import require_adapter
from sdpo_bench.runs.run_folder import RunFolder, find_run
from sdpo_bench.runs.saved_adapter import load_adapter
from sdpo_bench.system.console_text import clean
from sdpo_bench.system.json_toml import whole_number
from sdpo_bench.system.output_paths import user_file

MOST_PICTURES = 1000
"""Of one grid: all of them are in memory at once, 3 MiB each at 512 x 512 pixels."""


def sample_command(
    *,
    run_name: str,
    prompts: tuple[str, ...],
    steps: str,
    images: int,
    out: Path,
    results: Path,
    device: str,
    threads: int,
    micro_batch: int,
) -> None:
    """``sdpo-bench sample``."""
    folder = find_run(results, run_name)
    counts = parse_steps(steps)
    texts = [text.strip() for text in prompts]
    if not all(texts):
        raise UsageError("--prompt is empty. Say what to draw, e.g. --prompt cat")
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out is a PNG file, got '{out}'. Example: --out sample.png")
    target = user_file(out, results)
    _check_place(target)
    chosen = list(dict.fromkeys(texts))
    if (pictures := 2 * len(chosen) * images * len(counts)) > MOST_PICTURES:
        raise UsageError(
            f"a grid of {pictures:,} pictures (base and tuned, prompts x images x step counts); at most "
            f"{MOST_PICTURES:,} fit. Give fewer --images, --prompt or --steps, and sample several times."
        )
    draw(folder, chosen, counts, images, target, device=device, threads=threads, micro_batch=micro_batch)
    click.echo(str(out))


def parse_steps(text: str) -> list[int]:
    """``"1,2,4"`` -> ``[1, 2, 4]``.

    Raises:
        UsageError: not whole numbers from 1 to 1000.
    """
    steps = [whole_number(part.strip(), 1, 1000) for part in text.split(",") if part.strip()]
    if not steps or None in steps:
        raise UsageError(f"--steps takes whole numbers from 1 to 1000, got '{text}'. Example: --steps 1,2,4,8")
    return list(dict.fromkeys(step for step in steps if step is not None))


def draw(
    folder: RunFolder,
    prompts: list[str],
    steps: list[int],
    images: int,
    out: Path,
    *,
    device: str,
    threads: int,
    micro_batch: int,
) -> None:
    """Sample base and tuned model from the same noise and write the grid.

    Raises:
        UsageError: the run has no adapter yet.
    """
    import torch

    from sdpo_bench.evaluation.evaluate import evaluation_schedule, sample_images
    from sdpo_bench.evaluation.inference_search import recorded_search
    from sdpo_bench.evaluation.reward_scale import calibrate
    from sdpo_bench.models.catalogue import load_policy, pick_device, refuse_changed
    from sdpo_bench.models.cut_prompts import read_by
    from sdpo_bench.plugins.parse_settings import validate
    from sdpo_bench.running.run_one import make_scorer
    from sdpo_bench.scoring import image_statistics as pictures
    from sdpo_bench.scoring.weighted_sum import Basis
    from sdpo_bench.seeds import seed_for
    from sdpo_bench.settings import EvaluationSettings, ModelSettings, ScheduleSettings

    require_adapter(folder)
    record = folder.record()
    if threads:
        torch.set_num_threads(threads)
    config = record["config"]
    settings: EvaluationSettings = validate(EvaluationSettings, config["eval"], "eval")
    model: ModelSettings = validate(ModelSettings, config["model"], "model")
    refuse_changed(model, record)
    policy = load_policy(model, device=pick_device(device), lora_seed=seed_for(config["seed"], "lora"))
    if warning := read_by(policy.pipeline, prompts).warning:
        click.echo(f"warning: {warning}", err=True)
    load_adapter(policy, folder.lora)
    policy.set_guidance(settings.guidance_scale)
    search = None
    if "search" in record:
        own = record["reward_execution"]
        schedule: ScheduleSettings = validate(ScheduleSettings, config["schedule"], "schedule")
        basis = Basis(model, schedule, config["sample"]["prompts"])
        scorer = make_scorer(own["name"], own["settings"], str(policy.device), basis)
        scorer.load()
        calibrate([scorer], policy, folder.path.parent.parent, record.get("reward_reference", {}))
        search = recorded_search(config, scorer)
    pairs = [(prompt, i) for prompt in prompts for i in range(images)]
    by_model: dict[str, list[Any]] = {}
    for name, context in (("base", policy.reference()), ("searched" if search else "tuned", nullcontext())):
        how = search if name == "searched" else None
        with context:
            schedules = [evaluation_schedule(policy, settings, k) for k in steps]
            by_model[name] = [sample_images(policy, s, settings, pairs, micro_batch, how).cpu() for s in schedules]
    rows = [
        (clean(f"{name}: {prompt}"), torch.stack([column[r] for column in columns]))
        for r, (prompt, _) in enumerate(pairs)
        for name, columns in by_model.items()
    ]
    pictures.grid(rows, [f"{k} step{'s' * (k != 1)}" for k in steps], out)


def _check_place(out: Path) -> None:
    """Fail before minutes of sampling if the picture cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise MissingError(f"'{out}' cannot be written: {error.strerror}. Choose another with --out.") from error
