"""Picture grids of several runs side by side: the same prompts and noise before and after each method.

    python -m tools.grids_side_by_side results/reference --methods ddpo,sdpo,draft --steps 1,4 --out grid.png

Made from the runs' ``grid.png`` alone, so that it needs no weights.
"""

import json
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation.picture_grid import grid_prompts
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.scoring.grid_layout import CELL, GAP, HEAD, LABEL_WIDTH
from sdpo_bench.scoring.image_statistics import grid
from sdpo_bench.settings import EvaluationSettings


def cells(path: Path, steps: int) -> Tensor:
    """Pictures of a grid ``[rows, steps, 3, CELL, CELL]`` in [0, 1]; base and tuned take turns in the rows."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255
    rows = (pixels.shape[1] - HEAD) // (CELL + GAP)
    tops = [HEAD + i * (CELL + GAP) for i in range(rows)]
    lefts = [LABEL_WIDTH + i * (CELL + GAP) for i in range(steps)]
    found = [pixels[:, top : top + CELL, left : left + CELL] for top in tops for left in lefts]
    return torch.stack(found).unflatten(0, (rows, steps))


def side_by_side(folders: dict[str, Path], steps: list[int], out: Path) -> None:
    """One row a prompt; for each step count the base model, then each method.

    Args:
        folders: run folder by method, all of one seed and one evaluation.

    Raises:
        UsageError: a step count that was not drawn.
    """
    record = json.loads((next(iter(folders.values())) / "run.json").read_text(encoding="utf-8"))
    settings: EvaluationSettings = validate(EvaluationSettings, record["config"]["eval"], "eval")
    if missing := set(steps) - set(settings.steps):
        raise UsageError(f"--steps {missing.pop()} is not in the grids. Valid: {', '.join(map(str, settings.steps))}")
    tables = {method: cells(folder / "grid.png", len(settings.steps)) for method, folder in folders.items()}
    base = next(iter(tables.values()))[0::2]
    columns, pictures = [], []
    for count in steps:
        at = settings.steps.index(count)
        columns += [f"{count} step{'s' * (count != 1)}: base", *tables]
        pictures += [base[:, at], *(table[1::2, at] for table in tables.values())]
    grid(list(zip(grid_prompts(settings), torch.stack(pictures, dim=1), strict=True)), columns, out)


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--methods", required=True, help="Methods by comma, in the order of the columns.")
@click.option("--reward", default="emoji-align", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default="1,4", show_default=True, help="Numbers of denoising steps by comma.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(results: Path, methods: str, reward: str, seed: int, steps: str, out: Path) -> None:
    """Lay the grids of one run of each method in RESULTS side by side."""
    folders = {}
    for method in methods.split(","):
        ids = sorted((results / "runs").glob(f"{method}-{reward.replace('-', '_')}-*-s{seed}-*/grid.png"))
        if len(ids) != 1:
            raise UsageError(f"{len(ids)} grids of '{method}' with seed {seed} in '{results}', one is needed")
        folders[method] = ids[0].parent
    side_by_side(folders, [int(text) for text in steps.split(",")], out)
    click.echo(out)


if __name__ == "__main__":
    main()
