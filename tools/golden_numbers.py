"""Digests of the numbers that the program computes, to show that a change of structure changes none of them.

Runs every installed method on the embedded model for two epochs, one run that is stopped and resumed, one second
evaluation, one small sweep, one study at its smallest size, and `report` over the committed results in every format.
Writes one digest for each training log, adapter, set of scores and set of report numbers. Run it before and after a
refactoring, on the same machine and with the same library versions, and compare:

    python tools/golden_numbers.py --out before.json
    python tools/golden_numbers.py --out after.json --compare before.json

Also prints how far the program's own code stacks up: frames from the entry point to the first call of `SDPO.loss`,
and source files entered by one whole epoch (`--profile` does only that). Takes about five minutes on two cores.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LORA_FILE = "pytorch_lora_weights.safetensors"
REPORT_SUFFIXES = (".md", ".tex", ".csv", ".json", ".html", ".txt")
TWO_EPOCHS = ["--budget", "images=128"]
SMALL_EVALUATION = ["--set", "eval.steps=1,4", "--set", "eval.images_per_prompt=1"]
ONE_THREAD = ["--threads", "1", "--device", "cpu"]
SWEEP = """
description = "Two methods, two seeds, one epoch each"
reproduces = "nothing"
departs = "in all sizes"
[cells]
method = ["sdpo", "grpo"]
reward = ["emoji-style"]
model = "emoji-turbo"
seed = [0, 1]
[budget]
images = 64
[eval]
steps = [2]
images_per_prompt = 1
"""


def command(*words: str, check: bool = True) -> str:
    """Standard output of one `sdpo-bench` command, run by this Python with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "sdpo_bench", *words], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    if check and done.returncode:
        raise SystemExit(f"sdpo-bench {' '.join(words)}\n{done.stderr}")
    return done.stdout


def train_all(results: Path) -> None:
    """Every installed method, two epochs each."""
    for method in [row["name"] for row in json.loads(command("list", "methods", "--json"))]:
        print(f"  {method}", flush=True)
        command("run", "--method", method, *TWO_EPOCHS, *SMALL_EVALUATION, *ONE_THREAD, "--out", str(results))


def stop_and_resume(results: Path) -> None:
    """A run of four epochs that is stopped after its first one and then resumed."""
    words = ["run", "--seed", "7", "--budget", "images=256", "--checkpoint-every", "1", *SMALL_EVALUATION, *ONE_THREAD]
    words += ["--out", str(results)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdpo_bench", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(log.stat().st_size for log in results.glob("**/train.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    if process.wait() == 0:
        raise SystemExit("the run that was to be resumed ended before it could be stopped")
    command(*words)


def evaluate_again(results: Path, run: str) -> None:
    """Another evaluation of a finished run, with a second reward and another step count."""
    command("eval", str(results / "runs" / run), "--steps", "2", "--rewards", "emoji-style", *ONE_THREAD)


def small_sweep(folder: Path) -> None:
    """Two methods by two seeds through the scheduler."""
    (folder / "pairs.toml").write_text(SWEEP)
    command("sweep", str(folder / "pairs.toml"), "--out", str(folder / "sweep"), *ONE_THREAD)


def digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:16]


def run_digests(results: Path) -> dict[str, str]:
    """Digests of the training logs, adapter weights and scores of every run in a results folder."""
    found = {}
    for log in sorted(results.glob("**/train.jsonl")):
        found[f"{log.parent.name}/log"] = digest([log.read_bytes()])
    for adapter in sorted(results.glob(f"**/runs/*/{LORA_FILE}")):
        found[f"{adapter.parent.name}/adapter"] = digest(adapter_parts(adapter))
    for evaluation in sorted(results.glob("**/eval.parquet")):
        found[f"{evaluation.parent.name}/scores"] = digest(score_parts(evaluation))
    return found


def adapter_parts(path: Path) -> Iterable[bytes]:
    from safetensors.numpy import load_file

    for name, value in sorted(load_file(str(path)).items()):
        yield name.encode()
        yield value.tobytes()


def score_parts(path: Path) -> Iterable[bytes]:
    import pandas as pd

    frame = pd.read_parquet(path)
    keys = ["split", "prompt", "image", "steps", "reward"]
    frame = frame.sort_values(keys, kind="stable")
    for name in [*keys, "score", "brightness", "contrast", "saturation", "sharpness"]:
        values = frame[name].to_numpy()
        yield values.tobytes() if values.dtype != object else "\0".join(map(str, values)).encode()


def report_digests(folder: Path) -> dict[str, str]:
    """Digests of the numbers in a report over the committed results, one for each format."""
    command("report", "--results", "results/reference", "--format", "all", "--out", str(folder))
    texts = {f"report/{p.name}": p.read_text() for p in sorted(folder.glob("**/*")) if p.suffix in REPORT_SUFFIXES}
    texts["report/terminal"] = command("report", "--results", "results/reference", "--format", "terminal")
    return {name: digest(numbers(name, text)) for name, text in texts.items()}


def numbers(name: str, text: str) -> list[bytes]:
    """Every number of a table's cells; words and styles may change."""
    if name.endswith(".json"):
        return [repr(value).encode() for value in json_numbers(json.loads(text))]
    if name.endswith(".html"):
        text = "\n".join(re.findall(r"<td.*?</td>", text, re.S))
        text = re.sub(r"<[^>]*>", " ", text)
    elif not name.endswith(".csv"):
        text = "\n".join(line for line in text.splitlines() if any(c in line for c in "|&│"))
    return sorted(found.encode() for found in re.findall(r"[-+−]?\d+(?:\.\d+)?", text))


def json_numbers(value: Any) -> Iterable[float]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from json_numbers(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from json_numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def study_numbers(record: dict[str, Any]) -> Iterable[float]:
    """All numbers of a study's findings but the seconds that its trainings took."""
    for table in record["findings"]["tables"]:
        timed = [i for i, column in enumerate(table["columns"]) if column["key"] == "seconds"]
        for group in table["groups"]:
            for row in group["rows"]:
                yield from json_numbers([cell for i, cell in enumerate(row["cells"]) if i not in timed])
    yield from json_numbers(record["findings"]["plots"])


class Profile:
    """Own source files entered, and own frames below each call of `SDPO.loss`."""

    def __init__(self) -> None:
        self.depth = 0
        self.entered: set[str] = set()
        self.between: list[set[str]] = []
        """Files entered before each call of the loss, since the call before it."""

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not own(frame):
            return
        self.entered.add(frame.f_code.co_filename)
        if frame.f_code.co_name == "loss" and frame.f_code.co_filename.endswith(os.path.join("methods", "sdpo.py")):
            self.depth = self.depth or frames(frame)
            self.between.append(self.entered)
            self.entered = set()

    def epoch_files(self) -> set[str]:
        """Files entered from the second epoch's first loss to the third epoch's first loss."""
        each = len(self.between) // 3
        return set().union(*self.between[each + 1 : 2 * each + 1])


def own(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    return path.startswith(str(ROOT)) and not path.startswith(str(ROOT / "tools"))


def frames(frame: FrameType | None) -> int:
    count = 0
    while frame is not None:
        count += own(frame) and frame.f_code.co_name != "<module>"
        frame = frame.f_back
    return count


def profile(results: Path) -> dict[str, Any]:
    """Run three epochs of SDPO in this process under `sys.setprofile`."""
    from sdpo_bench.__main__ import main

    watch = Profile()
    words = ["run", "--budget", "images=192", *SMALL_EVALUATION, *ONE_THREAD, "--out", str(results), "--json"]
    sys.argv = ["sdpo-bench", *words]
    sys.setprofile(watch)
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
    files = sorted(str(Path(path).relative_to(ROOT)) for path in watch.epoch_files())
    return {"frames to SDPO.loss": watch.depth, "files in one epoch": len(files), "files": files}


def profiled(folder: Path) -> dict[str, Any]:
    """The profile, from a process of its own."""
    target = folder / "profile.json"
    words = [sys.executable, __file__, "--profile", "--out", str(target)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    if not target.is_file():
        raise SystemExit(f"the profile failed:\n{done.stderr}")
    return json.loads(target.read_text())


def measure(folder: Path) -> dict[str, str]:
    """All digests; everything is written below `folder`."""
    results = folder / "results"
    print("methods", flush=True)
    train_all(results)
    print("resume, evaluation, sweep, study, report", flush=True)
    stop_and_resume(folder / "resumed")
    evaluate_again(results, next(p.name for p in sorted((results / "runs").iterdir()) if p.name.startswith("sdpo-")))
    small_sweep(folder)
    command("study", "update-order", "--size", "tiny", *ONE_THREAD, "--out", str(folder / "study"))
    study = json.loads((folder / "study" / "studies" / "update-order" / "tiny.json").read_text())
    found = {"study/update-order": digest(repr(value).encode() for value in study_numbers(study))}
    for name in ("results", "resumed", "sweep", "study"):
        found |= {f"{name}/{key}": value for key, value in run_digests(folder / name).items()}
    return found | report_digests(folder / "report")


def compare(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names whose digests differ or that only one side has."""
    return [name for name in sorted(before | after) if before.get(name) != after.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--compare", type=Path, help="JSON file of an earlier run; exit 1 where a digest differs")
    parser.add_argument("--profile", action="store_true", help="only count frames and files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.profile:
            target = options.out.resolve()
            counted = profile(Path(folder))
            target.write_text(json.dumps(counted, indent=1) + "\n")
            return
        found = measure(Path(folder))
        counted = profiled(Path(folder))
    options.out.write_text(json.dumps({"digests": found, "profile": counted}, indent=1) + "\n")
    print(f"{counted['frames to SDPO.loss']} own frames from the entry point to SDPO.loss")
    print(f"{counted['files in one epoch']} own files entered by one epoch")
    if options.compare:
        differing = compare(json.loads(options.compare.read_text())["digests"], found)
        print("\n".join(["digests differ:", *differing]) if differing else f"all {len(found)} digests equal")
        raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()
