"""Trainings of a study without training: run folders whose scores and logs are what a test says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from report_factory import frame

from sdpo_bench.config.resolve import resolve
from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.plugins.registry import plugins
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.studies.shared.contract import Bench, StudyRequest
from sdpo_bench.studies.shared.trainings import Trainings, merged_plan
from sdpo_bench.sweep.plan import Job

Gain = Callable[[Job, str, int], float]
"""``(cell, judging reward, step count) -> gain`` over the base model, whose scores lie around 0."""


def finished(
    name: str,
    request: StudyRequest,
    out: Path,
    gain: Gain,
    *,
    fail: Any = lambda cell: "",
    contrast: Any = lambda cell: 0.2,
    log: Any = lambda cell: [row()],
    sharpness: Any = lambda cell, steps: 0.05,
) -> Bench:
    """A study whose trainings have all ended; seeds and prompts differ a little around ``gain``.

    Base models of several scores differ by 10, so that a run that is compared with another model's stands out.
    """
    study = plugins("studies")[name].load()()
    design = study.design(request)
    suites = list(design.suites)
    _finish(suites, out, gain, fail, contrast, log, sharpness)
    trainings = Trainings.of(merged_plan(name, suites, out))
    if more := study.follow_up(request, trainings):
        suites += more
        _finish(suites, out, gain, fail, contrast, log, sharpness)
        trainings = Trainings.of(merged_plan(name, suites, out))
    return Bench(request, design, Runtime(out), trainings)


def findings(name: str, *arguments: Any, **options: Any) -> Any:
    """What the study makes of them."""
    return plugins("studies")[name].load()().findings(finished(name, *arguments, **options))


def row(images: int = 64, steps: int = 10, share: Any = (0.5, 0.5), **more: Any) -> dict[str, Any]:
    """The last line of a training log."""
    bill = {"images": images, "optimiser_steps": steps, "denoiser_calls": 100, "reward_calls": images}
    return {
        "epoch": 1,
        "reward_mean": 1.0,
        "kl_to_base": 0.01,
        "gradient_share_by_step": list(share),
        "bill": bill,
        "pictures": {"contrast": 0.2, "sharpness": 0.1},
    } | more


def _finish(suites: Any, out: Path, gain: Gain, fail: Any, contrast: Any, log: Any, sharpness: Any) -> None:
    blocks: dict[str, dict[Any, Any]] = {}
    models: dict[str, Any] = {}
    jobs = merged_plan("test", suites, out).jobs
    levels = {model: 10 * i for i, model in enumerate(dict.fromkeys(cell.model for cell in jobs))}
    for cell in jobs:
        folder = RunFolder(out / "runs" / cell.run_id)
        record = resolve(cell.request).record
        folder.create(record)
        models[cell.model] = record["config"]["model"]
        reason = fail(cell)
        (folder.path / "status").write_text(json.dumps({"state": "failed" if reason else "done", "message": reason}))
        if reason:
            continue
        rows = _scores(folder, cell, gain, contrast(cell), cell.seed)
        rows["sharpness"] = [sharpness(cell, k) + 0.0002 * ((ord(p[0]) + 3 * cell.seed) % 5 - 2) for k, p in at(rows)]
        rows["score"] += levels[cell.model]
        rows.to_parquet(folder.evaluation, index=False)
        key = (cell.settings["reward.version"], str(cell.settings["eval.steps"]))
        own = blocks.setdefault(cell.model, {})
        if key not in own:
            own[key] = _scores(_base(out, cell.model), cell, lambda *_: 0.0, 0.2, 0)
            own[key]["score"] += levels[cell.model]
        (folder.path / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log(cell)))
        (folder.path / "timing.jsonl").write_text(json.dumps({"seconds": 12.5}) + "\n")
    keys = ["split", "prompt", "image", "steps", "reward", "version"]
    for model, own in blocks.items():
        base = _base(out, model)
        base.create({"kind": "base", "config": {"model": models[model]}})
        pd.concat(own.values()).drop_duplicates(keys).to_parquet(base.evaluation, index=False)


def at(rows: pd.DataFrame) -> Any:
    """Step count and prompt of every row."""
    return zip(rows["steps"], rows["prompt"])


def _base(out: Path, model: str) -> RunFolder:
    return RunFolder(out / "runs" / f"base-{Path(model).name}")


def _scores(folder: RunFolder, cell: Job, gain: Gain, contrast: float, seed: int) -> pd.DataFrame:
    """Scores of every reward that judges: gain + 0.01 (seed - 1) + noise of prompt and image that cancels in pairs."""
    s = cell.settings
    prompts, steps = sorted(load_prompts(s["eval.train"])), sorted(s["eval.steps"])
    noise = np.random.default_rng(0).normal(size=(len(prompts), len(steps), s["eval.images_per_prompt"]))
    own = np.random.default_rng(cell.seed + 1).normal(size=(len(prompts), 1, 1)) * 0.02
    rows = []
    for reward in dict.fromkeys([s["reward.name"], *s["eval.rewards"]]):
        gains = np.array([gain(cell, reward, k) for k in steps])[None, :, None]
        scores = noise + gains + (0 if folder.run_id.startswith("base") else own + 0.01 * (seed - 1))
        version = cell.asked.versions.get(reward, "1")
        rows.append(
            frame(
                scores,
                run=folder.run_id,
                method=cell.method,
                seed=seed,
                prompts=prompts,
                steps=steps,
                reward=reward,
                version=version,
                sampler=sampler_id(resolve(cell.request).config.eval),
            ).assign(contrast=contrast)
        )
    return pd.concat(rows)


def request(four, **options):
    return StudyRequest(overrides={"eval.train": str(four)}, **options)


def has(found, *words):
    """Whether one sentence of the conclusion has all the words."""
    return any(all(word in line for word in words) for line in found.conclusion)
