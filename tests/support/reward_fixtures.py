"""Recorded official numbers that reward tests compare with, and rewards on the tiny checkpoints beside them.

``SDPO_BENCH_REWARD_FIXTURES`` names the folder; its README.md says what every array is and how close to get.
"""

import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sdpo_bench.plugins.registry import find
from sdpo_bench.rewards._images import read_image, to_bytes

HERE = Path(__file__).parents[1] / "fixtures"
ROOT = Path(os.environ.get("SDPO_BENCH_REWARD_FIXTURES", HERE / "rewards"))
TINY_TABLE = ROOT / "common" / "tiny_clip_tokenizer"
PATHS = {
    "hpsv2": {"path": ROOT / "hpsv2", "tokenizer_path": TINY_TABLE},
    "imagereward": {"path": ROOT / "imagereward"},
    "pickscore": {"path": ROOT / "pickscore" / "model", "tokenizer_path": TINY_TABLE},
    "aesthetic": {"path": ROOT / "aesthetic", "clip_path": ROOT / "aesthetic" / "clip"},
    "clipscore": {"path": ROOT / "pickscore" / "model", "tokenizer_path": TINY_TABLE},
}


@cache
def inputs() -> dict:
    """``images`` and ``prompts`` of the recording."""
    return json.loads((ROOT / "common" / "inputs.json").read_text(encoding="utf-8"))


@cache
def prompts() -> list[str]:
    return inputs()["prompts"]


@cache
def names() -> list[str]:
    return [entry["name"] for entry in inputs()["images"]]


@cache
def images() -> list[torch.Tensor]:
    """Float32 ``[1, 3, H, W]`` each."""
    return [read_image(ROOT / "common" / entry["file"]) for entry in inputs()["images"]]


@cache
def pictures() -> list[torch.Tensor]:
    """uint8 ``[1, 3, H, W]`` each."""
    return [to_bytes(image) for image in images()]


@cache
def recorded(part: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / part) as file:
        return dict(file)


def new_reward(name: str, **settings):
    """A reward on its tiny checkpoint, through the same code as on the published one."""
    plugin = find("rewards", name).load()
    paths = {key: str(value) for key, value in PATHS[name].items()}
    return plugin(plugin.Settings(**paths | settings))


@cache
def reward(name: str, **settings):
    """:func:`new_reward`, made once for all tests that do not change it.

    The tiny HPS checkpoint has the vocabulary of CLIP's full table, so its prompts are the recorded ids.
    """
    made = new_reward(name, **settings).load()
    if name == "hpsv2":
        rows = dict(zip(prompts(), torch.from_numpy(recorded("hpsv2/expected.npz")["token_ids"]).long()))
        made.model.tokenize = lambda prompt: {"input_ids": rows[prompt][None]}
    return made


@cache
def score_matrix(name: str, **settings) -> torch.Tensor:
    """Scores ``[image, prompt]`` by calling the reward."""
    scorer = reward(name, **settings)
    return torch.stack([scorer(image.expand(len(prompts()), -1, -1, -1), prompts()) for image in images()])


@cache
def paired_scores(name: str, **settings) -> torch.Tensor:
    """Scores of image i with prompt i, one pair a call."""
    return torch.cat([reward(name, **settings)(image, [p]) for image, p in zip(images(), prompts())])


def clip_table() -> Path | None:
    """A folder with the byte-pair table of the published CLIP, as far as the recorded prompts need it."""
    if named := os.environ.get("SDPO_BENCH_CLIP_TABLE"):
        return Path(named)
    excerpt = HERE / "clip_table_excerpt"
    made_for = (excerpt / "prompts.sha256").read_text().strip()
    return excerpt if made_for == hashlib.sha256(json.dumps(prompts()).encode()).hexdigest() else None


def damaged_copy(name: str, folder: Path, change) -> Path:
    """The reward's checkpoint folder, its tensors changed by ``change`` in place."""
    shutil.copytree(PATHS[name]["path"], folder, copy_function=shutil.copyfile)
    file = next(f for f in folder.iterdir() if f.suffix in (".pt", ".pth", ".safetensors"))
    if file.suffix == ".safetensors":
        state = load_file(file)
        change(state)
        save_file(state, file)
    else:
        content = torch.load(file, weights_only=True)
        change(content.get("state_dict", content))
        torch.save(content, file)
    return folder
