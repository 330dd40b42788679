"""Run folders with known numbers: what training and evaluation would have left, without training or torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdpo_bench.config.run_id import training_id, versions_of

SAMPLER = "ddim trailing eta=1 guidance=1 sample bank=0"
PROMPTS = ("cat", "dog", "bee")
STEPS = (1, 2, 4)
VERSIONS = {"python": "3.11.0", "sdpo-bench": "0.2.0", "torch": "2.13.0"}
HARDWARE = {
    "machine": "x86_64",
    "system": "Linux",
    "cores": 2,
    "threads": 1,
    "memory_gib": 8.0,
    "device": "cpu",
    "accelerator": None,
}
SCHEDULE = {
    "prediction_type": "v_prediction",
    "beta_schedule": "scaled_linear",
    "steps": 10,
    "eta": 1,
    "spacing": "trailing",
    "prev_timestep": "grid",
}


def config(method: str = "sdpo", seed: int = 0, reward: str = "emoji-align", **changes: Any) -> dict[str, Any]:
    """A resolved configuration; ``changes`` by ``section.key``, or by ``section`` for one that a run has not."""
    data: dict[str, Any] = {
        "seed": seed,
        "method": {"name": method, "settings": {"clip_range": 0.001}},
        "reward": {"name": reward, "settings": {}},
        "model": {"name": "emoji-turbo", "revision": None, "precision": "fp32", "lora_rank": 4},
        "schedule": {"steps": 10, "eta": 1, "spacing": "trailing"},
        "sample": {"prompts": "simple-animals", "images_per_epoch": 64},
        "advantage": {"normalisation": "per-step-prompt", "gamma": 0.99},
        "update": {"order": "step-shuffled", "lr": 0.001, "step_weight": "official"},
        "budget": {"axis": "images", "amount": 128},
        "eval": {"steps": list(STEPS), "train": "simple-animals"},
    }
    if method == "sdpo":
        data["method"]["settings"] |= {"reward": "predicted", "temporal_discount": 0.99}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if not name:
            data[section] = value
            continue
        place = data[section]["settings"] if section in ("method", "reward") else data.setdefault(section, {})
        place[name] = value
    return data


def frame(
    scores: Any,
    *,
    run: str,
    method: str,
    seed: int,
    prompts: Any = PROMPTS,
    steps: Any = STEPS,
    split: str = "train",
    reward: str = "emoji-align",
    version: str = "1",
    sampler: str = SAMPLER,
) -> pd.DataFrame:
    """Evaluation rows from scores ``[P, K, I]``."""
    scores = np.asarray(scores, dtype=float)
    p, k, i = (axis.ravel() for axis in np.indices(scores.shape))
    return pd.DataFrame(
        {
            "run": run,
            "method": method,
            "seed": seed,
            "sampler": sampler,
            "split": split,
            "prompt": np.asarray(prompts, dtype=object)[p],
            "image": i,
            "steps": np.asarray(steps)[k],
            "reward": reward,
            "version": version,
            "score": scores.ravel(),
            "brightness": 0.5,
            "contrast": 0.2,
            "saturation": 0.3,
            "sharpness": 0.05,
        }
    )


def spread(means: Any, *, prompts: int = len(PROMPTS), images: int = 2) -> np.ndarray:
    """``[P, K, I]`` whose mean at step count k is ``means[k]``: prompts and images lie symmetrically around it."""
    p = np.linspace(-0.3, 0.3, prompts)[:, None, None]
    i = np.linspace(-0.1, 0.1, images)[None, None, :]
    return np.asarray(means, dtype=float)[None, :, None] + p + i


def log_rows(epochs: int, reward: str, start: float) -> list[dict[str, Any]]:
    """A training log in which the reward rises by 0.1 an epoch."""
    rows = []
    for e in range(1, epochs + 1):
        bill = {
            "images": 64 * e,
            "forward": {"rollout": 640 * e, "update": 640 * e},
            "backward": 640 * e,
            "rewards": {reward: 192 * e},
            "optimiser_steps": 10 * e,
            "denoiser_calls": 1920 * e,
            "reward_calls": 192 * e,
        }
        pictures = {
            "brightness": 0.5,
            "contrast": 0.2,
            "saturation": 0.3,
            "sharpness": 0.05,
            "diversity": 0.3,
            "flat_fraction": 0.0,
        }
        rows.append(
            {
                "epoch": e,
                "reward_mean": start + 0.1 * e,
                "kl_to_base": 0.01 * e,
                "clip_fraction": 0.2,
                "gradient_share_by_step": [0.1] * 10,
                "pictures": pictures,
                "bill": bill,
            }
        )
    return rows


def make_run(
    out: Path,
    method: str = "sdpo",
    seed: int = 0,
    scores: Any = None,
    *,
    state: str = "done",
    message: str = "",
    reward: str = "emoji-align",
    version: str = "1",
    epochs: int = 2,
    frames: Any = (),
    record: Any = None,
    you: Any = (),
    **changes: Any,
) -> Path:
    """A run folder; ``scores [P, K, I]`` under the trained reward on the train split, more rows through ``frames``.

    Args:
        frames: functions from (run id, method, seed) to more evaluation rows.
        record: entries of ``run.json`` to replace.
        you: settings that the user asked for.
    """
    settings = config(method, seed, reward, **changes)
    data = {
        "kind": "run",
        "config": settings,
        "sources": dict.fromkeys(you, "you"),
        "preset": "embedded",
        "reward_version": f"{reward}/{version}",
        "schedule": SCHEDULE,
        "versions": VERSIONS,
        "git_commit": "0" * 40,
        "plugin_sha256": {"method": "a" * 64, "reward": "b" * 64},
        "hardware": HARDWARE,
        **(record or {}),
    }
    name = data["run"] = training_id(settings, versions_of(data))
    folder = out / "runs" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(data))
    (folder / "status").write_text(json.dumps({"state": state, "message": message}))
    rows = log_rows(epochs, reward, -1.0 + 0.01 * seed)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "timing.jsonl").write_text(
        "".join(json.dumps({"epoch": e, "seconds": 30.0}) + "\n" for e in range(epochs))
    )
    who = {"run": name, "method": method, "seed": seed}
    parts = [] if scores is None else [frame(scores, **who, reward=reward, version=version)]
    parts += [make(**who) for make in frames]
    if parts:
        pd.concat(parts, ignore_index=True).to_parquet(folder / "eval.parquet", index=False)
    return folder


def make_base(out: Path, *frames: pd.DataFrame, name: str = "base-emoji_turbo-0") -> Path:
    """The base model's folder with these rows."""
    folder = out / "runs" / name
    folder.mkdir(parents=True)
    model = {"name": "emoji-turbo", "revision": None, "precision": "fp32"}
    data = {"kind": "base", "run": name, "config": {"model": model}, "sampler": SAMPLER, "versions": VERSIONS}
    (folder / "run.json").write_text(json.dumps(data))
    (folder / "status").write_text(json.dumps({"state": "done", "message": ""}))
    pd.concat(frames, ignore_index=True).assign(run=name).to_parquet(folder / "eval.parquet", index=False)
    return folder


def base_frame(scores: Any, **options: Any) -> pd.DataFrame:
    """Rows of the base model."""
    return frame(scores, run="base-emoji_turbo-0", method="base", seed=0, **options)


def edit_scores(folder: Path, change: Any) -> None:
    """Apply ``change(rows)`` to a run's evaluation rows in place."""
    rows = pd.read_parquet(folder / "eval.parquet")
    change(rows)
    rows.to_parquet(folder / "eval.parquet", index=False)


def add_curve(
    folder: Path,
    rises: Any,
    *,
    splits: Any = ("train",),
    steps: Any = (1, 4),
    base: float = -1.0,
    unseen: Any = None,
) -> None:
    """Give a run the learning curve of a training that had 64 images between two points.

    Args:
        rises: over the base model, one a point, the first for the base model itself; at every step count, ten times as
            high at the last of them.
        unseen: other rises, for the unseen split.
    """
    splits = (*splits, "unseen") if unseen is not None else splits
    record = json.loads((folder / "run.json").read_text())
    reward, _, version = record["reward_version"].partition("/")
    lines = []
    for i in range(len(rises)):
        own = {split: (unseen if split == "unseen" and unseen is not None else rises)[i] for split in splits}
        scores = [
            {
                "split": split,
                "steps": k,
                "sampler": SAMPLER,
                "images": 3,
                "pictures": "0123456789",
                "reward": reward,
                "version": version,
                "mean": base + own[split] * (10 if k == steps[-1] else 1),
            }
            for split in splits
            for k in steps
        ]
        cost = {"images": 64 * i, "denoiser_calls": 1920 * i, "reward_calls": 192 * i, "optimiser_steps": 10 * i}
        lines.append({"epoch": 5 * i, **cost, "seconds": 30.0 * i, "cost": {}, "scores": scores})
    (folder / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
