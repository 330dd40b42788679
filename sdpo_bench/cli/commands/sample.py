"""``sdpo-bench sample``: see what a run has learnt, on any prompt and at any number of steps."""

from pathlib import Path

import click

from sdpo_bench.errors import UsageError
from sdpo_bench.runs.run_folder import RunFolder, find_run
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
    target.parent.mkdir(parents=True, exist_ok=True)
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
    from sdpo_bench.evaluation.picture_grid import draw_grid
    from sdpo_bench.models.base_model import pick_device
    from sdpo_bench.models.cut_prompts import read_by
    from sdpo_bench.running.evaluation_process import set_threads
    from sdpo_bench.running.finished_run import load_tuned, open_finished_run

    run = open_finished_run(folder)
    chosen_device = pick_device(device)
    policy, search = load_tuned(run, chosen_device)
    set_threads(threads, chosen_device, policy)
    if warning := read_by(policy, prompts).warning:
        click.echo(f"warning: {warning}", err=True)
    draw_grid(
        policy,
        run.evaluation,
        [(prompt, i) for prompt in prompts for i in range(images)],
        steps,
        out,
        caption="{model}: {prompt}",
        micro_batch=micro_batch,
        search=search,
    )
