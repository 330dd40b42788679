"""Pictures by method and step count for one prompt and noise at a time, cut out of the grids that runs have drawn.

A run's ``grid.png`` has two rows a prompt, base model above tuned, and a column a step count, all of image number 0.
Grids of another shape are left to the page's plain pictures.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from sdpo_bench.errors import SdpoBenchError
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.results.comparability import Setting
from sdpo_bench.results.read_results import Run, trained_on
from sdpo_bench.scoring.grid_layout import CELL, GAP, HEAD, LABEL_WIDTH, spread_prompts
from sdpo_bench.statistics.eval_table import BASE, Block, PanelKey, Scores

SMALL = (16, 24, 32, 48)
"""Sizes of pictures that were enlarged without smoothing, and are stored as small as they were."""


@dataclass(frozen=True)
class PictureRow:
    """One method's pictures, one a step count, as PNG data URIs; their rewards, empty where unknown."""

    label: str
    sources: tuple[str, ...]
    scores: tuple[str, ...]


@dataclass(frozen=True)
class PromptPictures:
    """All rows of one prompt, the base model first."""

    prompt: str
    rows: tuple[PictureRow, ...]


@dataclass(frozen=True)
class PictureGrid:
    """Pictures of a setting."""

    reward: str
    steps: tuple[int, ...]
    prompts: tuple[PromptPictures, ...]
    missing: tuple[str, ...]
    """Labels of finished methods without a grid."""
    images: int = 0
    """Images a step count of each run behind the numbers of the tables; 0 where the trained reward has none."""


def picture_grid(
    setting: Setting, scores: Mapping[str, Scores], base: Scores, order: Sequence[str] = ()
) -> PictureGrid | None:
    """The first run of each arm that has a grid of the same prompts and step counts; None where no run has one.

    Args:
        scores: by run id.
        base: of the base model.
        order: labels of arms, those whose rows come first; the others follow as in the setting.
    """
    prompts: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    images: dict[str, tuple[Run, list[list[str]]]] = {}
    missing: list[str] = []
    places = {label: place for place, label in enumerate(order)}
    for arm in sorted(setting.arms, key=lambda arm: places.get(arm.label, len(places))):
        run = next((run for run in arm.done if (run.folder.path / "grid.png").is_file()), None)
        cut = _cut(run, with_base=not images) if run else None
        if run is None or cut is None or (prompts and (cut[0], cut[1]) != (prompts, steps)):
            missing += [arm.label] if arm.done else []
            continue
        prompts, steps = cut[0], cut[1]
        images[arm.label] = (run, cut[2])
    if not images:
        return None
    by_prompt = [_prompt_pictures(i, prompt, steps, images, scores, base) for i, prompt in enumerate(prompts)]
    first = next(iter(images.values()))[0]
    return PictureGrid(setting.reward, steps, tuple(by_prompt), tuple(missing), _judged(scores.get(first.id), first))


def _judged(scores: Scores | None, run: Run) -> int:
    """Images a step count that the trained reward has judged on the first split of a run; 0 without scores."""
    sizes = [len(block.prompts) * len(block.images) for _, block in _own_blocks(scores, run)]
    return sizes[0] if sizes else 0


def _own_blocks(scores: Scores | None, run: Run) -> list[tuple[PanelKey, Block]]:
    """Scores by the trained reward and the sampler that has drawn the grid."""
    blocks = scores.blocks.items() if scores else ()
    trained = [(key, block) for key, block in blocks if trained_on(run.settings, key.reward, key.version)]
    return [(key, block) for key, block in trained if key.sampler == run.own_sampler]


def _prompt_pictures(
    index: int,
    prompt: str,
    steps: tuple[int, ...],
    images: Mapping[str, tuple[Run, list[list[str]]]],
    scores: Mapping[str, Scores],
    base: Scores,
) -> PromptPictures:
    keys = {label: _key(scores.get(run.id), run, prompt) for label, (run, _) in images.items()}
    label, (_, cells) = next(iter(images.items()))
    rows = [PictureRow(BASE, tuple(cells[2 * index]), _numbers(base, keys[label], prompt, steps))]
    for label, (run, cells) in images.items():
        numbers = _numbers(scores.get(run.id), keys[label], prompt, steps)
        rows.append(PictureRow(label, tuple(cells[2 * index + 1]), numbers))
    return PromptPictures(prompt, tuple(rows))


def _key(scores: Scores | None, run: Run, prompt: str) -> PanelKey | None:
    """Where the trained reward of image 0 of a prompt is."""
    own = _own_blocks(scores, run)
    return next((key for key, block in own if prompt in block.prompts and 0 in block.images), None)


def _numbers(scores: Scores | None, key: PanelKey | None, prompt: str, steps: tuple[int, ...]) -> tuple[str, ...]:
    """The reward of image 0 by step count; empty where it was not scored."""
    block = scores.blocks.get(key) if scores and key else None
    return tuple(_score(block, prompt, step) for step in steps)


def _score(block: Block | None, prompt: str, step: int) -> str:
    if block is None or step not in block.steps or prompt not in block.prompts or 0 not in block.images:
        return ""
    place = block.prompts.index(prompt), block.steps.index(step), block.images.index(0)
    if block.present is not None and not block.present[place]:
        return ""
    return f"{block.scores[place]:.3g}"


def _cut(run: Run, *, with_base: bool) -> tuple[tuple[str, ...], tuple[int, ...], list[list[str]]] | None:
    """Prompts, step counts and the pictures of each row; None where the file is no grid of these.

    Args:
        with_base: also cut the rows of the base model; they are empty otherwise.
    """
    from PIL import Image

    prompts, steps = grid_prompts(run), tuple(run.settings.get("eval.steps") or ())
    shape = (LABEL_WIDTH + len(steps) * (CELL + GAP), HEAD + 2 * len(prompts) * (CELL + GAP))
    try:
        with Image.open(run.folder.path / "grid.png") as picture:
            if not prompts or not steps or picture.size != shape:
                return None
            canvas = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    rows: list[list[str]] = []
    for r in range(2 * len(prompts)):
        if r % 2 == 0 and not with_base:
            rows.append([])
            continue
        corners = [(LABEL_WIDTH + c * (CELL + GAP), HEAD + r * (CELL + GAP)) for c in range(len(steps))]
        rows.append([_uri(canvas.crop((x, y, x + CELL, y + CELL))) for x, y in corners])
    return prompts, steps, rows


def grid_prompts(run: Run) -> tuple[str, ...]:
    """The prompts that a run draws in its grid, as ``evaluation.picture_grid`` chooses them; empty without the list."""
    name = next((run.settings[key] for key in SPLIT_KEYS if run.settings.get(key)), None)
    try:
        texts = load_prompts(str(name)) if name else []
    except SdpoBenchError:
        return ()
    return tuple(spread_prompts(texts))


SPLIT_KEYS = ("eval.train", "eval.validation", "eval.unseen")


def _uri(tile: Any) -> str:
    """A picture as PNG, in its own size where it was enlarged without smoothing."""
    from PIL import Image

    for size in SMALL:
        small = tile.resize((size, size), Image.Resampling.NEAREST)
        if small.resize(tile.size, Image.Resampling.NEAREST).tobytes() == tile.tobytes():
            tile = small
            break
    stream = BytesIO()
    tile.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
