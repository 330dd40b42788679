"""The command line in a child process that kills itself (SIGKILL) at a chosen moment.

Moments are counted, so that a test repeats: every write that is made durable, every rename and removal (before and
after it), and every denoiser call. A write that is cut short leaves what a dying process leaves: part of a temporary
file, or part of a log's last line.
"""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from forked import command, exit_code
from sdpo_bench.runs.run_folder import RunFolder

KILLED = -signal.SIGKILL
RESULTS = (
    "train.jsonl",
    "validation.jsonl",
    "eval.parquet",
    "grid.png",
    "lora/pytorch_lora_weights.safetensors",
    "lora/pytorch_lora_weights.sha256",
)
SETTINGS = {
    "schedule.steps": 2,
    "sample.images_per_epoch": 4,
    "update.minibatch": 2,
    "update.accumulation": 1,
    "update.lr": 3e-2,
    "eval.steps": 1,
    "eval.images_per_prompt": 1,
    "checkpoint.choose": "validation",
    "checkpoint.every": 1,
    "checkpoint.steps": 1,
    "eval.every": 2,
    "eval.curve_steps": 1,
}


def run_until(kill_at: int | str, arguments: list[str], moments: Path) -> int:
    """Exit code of ``sdpo-bench ARGUMENTS``, :data:`KILLED` if it was killed at moment ``kill_at``.

    A moment is given by its number (0: never) or by a part of its name.

    The child is a fork, so that nothing is imported again. The moments that it reached are in the file ``moments``, one
    a line, and what it said in ``moments`` + ``.said``.
    """
    said = Path(f"{moments}.said")
    said.unlink(missing_ok=True)
    return exit_code(lambda: _child(kill_at, arguments, moments), said, said)


def _child(kill_at: int | str, arguments: list[str], moments: Path) -> None:
    from sdpo_bench.models.policy import Policy

    moment = _Moments(kill_at, moments)
    os.fsync = _around(moment, "fsync", os.fsync, tear=True)
    os.replace = _around(moment, "replace", os.replace)
    os.unlink = _around(moment, "unlink", os.unlink)
    Policy.predict = _around(moment, "predict", Policy.predict)  # type: ignore[method-assign]
    command(arguments)


class _Moments:
    def __init__(self, kill_at: int | str, path: Path):
        self.kill_at, self.count = kill_at, 0
        self.stream = open(path, "w", buffering=1)  # noqa: SIM115

    def __call__(self, name: str, torn: Callable[[], None] = lambda: None) -> None:
        self.count += 1
        self.stream.write(f"{self.count} {name}\n")
        if self.count == self.kill_at if isinstance(self.kill_at, int) else self.kill_at in name:
            torn()
            os.kill(os.getpid(), signal.SIGKILL)


def _around(moment: _Moments, name: str, function: Callable[..., Any], *, tear: bool = False) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        what = _name(args[0]) if name != "predict" else ""
        moment(f"before {name} {what}", (lambda: _tear(args[0])) if tear else (lambda: None))
        result = function(*args, **kwargs)
        moment(f"after {name} {what}")
        return result

    return wrapped


def _name(target: Any) -> str:
    return Path(os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target).name


def _tear(handle: int) -> None:
    """What a write that was cut short leaves behind."""
    name, size = os.readlink(f"/proc/self/fd/{handle}"), os.fstat(handle).st_size
    if name.endswith(".tmp"):
        os.truncate(name, size * 2 // 3)
    elif name.endswith(".jsonl"):
        last = len(Path(name).read_bytes().splitlines(keepends=True)[-1]) if size else 0
        os.truncate(name, size - last // 2)


def command_of(folder: Path, pipeline: Path) -> Callable[[Path, int], list[str]]:
    """Arguments of a run of three epochs with a choice among them, for a results folder and a checkpoint interval.

    Its prompt files are put in ``folder``.
    """
    (folder / "few.txt").write_text("cat\ndog\n")
    (folder / "held.txt").write_text("bee\n")
    named = {
        "sample.prompts": folder / "few.txt",
        "eval.train": folder / "few.txt",
        "checkpoint.prompts": folder / "held.txt",
    }
    sets = [part for key, value in (SETTINGS | named).items() for part in ("--set", f"{key}={value}")]
    fixed = ["run", "--model", str(pipeline), "--reward", "jpeg-incompressibility", "--budget", "images=12", *sets]
    return lambda out, every: [*fixed, "--out", str(out), "--checkpoint-every", str(every)]


def results(out: Path) -> dict[str, bytes]:
    """Bytes of all results, of the run and of its base model; of the learning curve all but the times."""
    found: dict[str, bytes] = {}
    for folder in sorted((out / "runs").iterdir()):
        for name in RESULTS:
            if (folder / name).exists():
                found[f"{folder.name}/{name}"] = (folder / name).read_bytes()
        if (folder / "curve.jsonl").exists():
            found[f"{folder.name}/curve.jsonl"] = json.dumps(curve_without_times(RunFolder(folder))).encode()
    return found


def curve_without_times(run: RunFolder) -> list[dict[str, Any]]:
    """The points of a run's learning curve without the seconds, which differ from one training to the next."""
    points = run.log("curve.jsonl")
    for point in points:
        del point["seconds"], point["cost"]["seconds"]
    return points


def finish(
    command: Callable[[Path, int], list[str]], out: Path, every: int, kills: Sequence[int | str], moments: Path
) -> list[str]:
    """Run to the end, killed at the given moments on the way; the moments where it was killed."""
    seen = []
    for kill_at in kills:
        code = run_until(kill_at, command(out, every), moments)
        if code == 0:
            break
        assert code == KILLED, Path(f"{moments}.said").read_text()
        seen.append(moments.read_text().splitlines()[-1])
        for folder in (out / "runs").iterdir():  # whatever the moment, nothing reads as done that is not
            run = RunFolder(folder)
            assert run.state in ("new", "running") or (folder / "eval.parquet").exists()
    assert run_until(0, command(out, every), moments) == 0, Path(f"{moments}.said").read_text()
    return seen
