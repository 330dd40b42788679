"""How fast is a GPU at sampling and training, with and without torch.compile? One command for a machine with a GPU.

    python -m benchmarks.gpu [--minutes 9] [--out .] [--micro-batch 16 64 4 1 32 8 2] [--compile off inductor ...]

The model is SD-Turbo's architecture (866 M-parameter UNet) with random weights, in bf16, at 512 pixels; nothing is
downloaded. Sampling is the program's evaluation, training is SDPO by the program's own ``Trainer``. For each compile
mode and micro-batch:

- images a second of sampling: denoising and decoding, second of two passes;
- images a second of training: the whole second epoch, with sampling, reward and updates;
- seconds of the first epoch, which compiles;
- shares of a third epoch outside UNet and autoencoder, and in the reward, with the device awaited around each call;
- peak memory of the device.

``off`` and ``inductor`` are values of the setting ``model.compile``. The program has no setting for CUDA graphs: in
``reduce-overhead`` this script compiles the UNet itself. Every mode is a process of its own, which ends when its share
of the time is over. Writes ``gpu.json`` and ``gpu.md`` after every row; a row without numbers says why. Needs 8 GB of
disk; ``--device cpu --small`` runs on a 0.2 M-parameter model anywhere.
"""

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MODES = ("off", "inductor", "reduce-overhead")
MICRO_BATCHES = (16, 64, 4, 1, 32, 8, 2)
"""In the order in which they are measured: should time run out, the ends and the middle are there."""
LEAST_IMAGES = 8
"""Images of an epoch and of a sampling pass with a micro-batch below it."""
MARGIN = 10.0
"""Seconds kept back for ending processes."""
NUMBERS = {
    "sampling_images_per_second": "sampling, images/s",
    "training_images_per_second": "training, images/s",
    "first_epoch_seconds": "first epoch, s",
    "share_outside_unet_and_vae": "outside UNet and VAE",
    "share_reward": "of it reward",
    "peak_gb": "peak, GB",
}
Row = dict[str, Any]


# -- in the process of one mode ------------------------------------------------------------------------------


class Unmeasured(Exception):
    """Why a row has no numbers."""


class StageClock:
    """Seconds that a trainer spends in its UNet (both directions), its autoencoder and its reward, once started."""

    def __init__(self, trainer: Any, wait: Callable[[], None]):
        self.seconds = dict.fromkeys(("unet", "vae", "reward"), 0.0)
        self._wait = wait
        self._calls = (
            (trainer.policy, "_call", "unet"),
            (trainer.updater, "_differentiate", "unet"),
            (trainer.policy, "decode", "vae"),
            (trainer.scorer, "_call", "reward"),
        )

    def start(self) -> None:
        """Measure from now on."""
        for owner, name, stage in self._calls:
            setattr(owner, name, self._timed(getattr(owner, name), stage))

    def stop(self) -> None:
        """Give the owners their own methods back."""
        for owner, name, _ in self._calls:
            vars(owner).pop(name, None)

    def _timed(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            self._wait()
            start = time.perf_counter()
            result = call(*arguments)
            self._wait()
            self.seconds[stage] += time.perf_counter() - start
            return result

        return timed


def measure_mode(mode: str, sizes: list[int], model: str, options: dict[str, Any], answers: Connection) -> None:
    """Send the machine's description, then one row for each micro-batch."""
    import torch

    try:
        policy = load(mode, model, options)
    except Exception as error:
        for size in sizes:
            answers.send({"compile": mode, "micro_batch": size, "unmeasured": reason(error)})
        return
    answers.send(describe(options))  # after loading, which decides about TF32
    for size in sizes:
        torch.compiler.reset()  # or the second size is compiled for any size, and the fourth not at all
        with tempfile.TemporaryDirectory() as out:
            try:
                numbers = measure(policy, model, size, options, Path(out))
            except Exception as error:
                numbers = {"unmeasured": reason(error)}
        answers.send({"compile": mode, "micro_batch": size} | numbers)
        policy.denoiser.zero_grad(set_to_none=True)
        release(options["device"])


def load(mode: str, model: str, options: dict[str, Any]) -> Any:
    """The model with a fresh adapter, compiled as the mode says."""
    import torch

    from sdpo_bench.models.base_model import load_policy
    from sdpo_bench.settings import ModelSettings

    # A graph that is compiled too often runs uncompiled after that, silently.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    backend = mode if mode not in ("off", "reduce-overhead") else ""
    settings = ModelSettings(name=model, precision=options["precision"], compile=backend)
    policy = load_policy(settings, device=options["device"], lora_seed=0)
    if mode == "reduce-overhead":
        policy.denoiser.compile(mode="reduce-overhead")
    return policy


def measure(policy: Any, model: str, size: int, options: dict[str, Any], out: Path) -> Row:
    """Numbers of one micro-batch.

    Raises:
        Unmeasured: memory ran out.
    """
    import torch

    from benchmarks.epochs import make_trainer

    on_cuda = options["device"].startswith("cuda")
    wait = torch.cuda.synchronize if on_cuda else lambda: None
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    images = max(LEAST_IMAGES, size)
    trainer = make_trainer(
        model,
        "sdpo",
        out,
        steps=options["steps"],
        pairs=images // 2,
        runtime={"device": options["device"], "micro_batch": size, "threads": 0, "checkpoint_every": 1000},
        policy=policy,
        watch=lambda tick: on_tick(tick),
        **{
            "model.precision": options["precision"],
            "sample.prompts": "simple-animals",
            "update.minibatch": images // 2,
            "update.lr": 1e-6,  # random weights need not learn, and should not overflow
            "budget.images": 3 * images,
            "guard.stop": False,
        },
    )
    clock = StageClock(trainer, wait)

    def on_tick(tick: Any) -> None:
        if trainer.context.micro_batch.size < size:  # the program goes on with half of it, and so with other numbers
            raise Unmeasured("out of memory")
        if tick.phase == "epoch" and tick.epoch == 2:
            clock.start()

    sampling = seconds_of_sampling(trainer, images, wait)
    try:
        trainer.train()
    finally:
        clock.stop()
    first, second, third = trainer.run.log("timing.jsonl")
    networks = clock.seconds["unet"] + clock.seconds["vae"]
    return {
        "images": images,
        "sampling_images_per_second": round(images / sampling, 3),
        "training_images_per_second": second["images_per_second"],
        "first_epoch_seconds": round(first["seconds"], 1),
        "share_outside_unet_and_vae": round(1 - networks / third["seconds"], 4),
        "share_reward": round(clock.seconds["reward"] / third["seconds"], 4),
        "peak_gb": round(peak_bytes(options["device"]) / 1e9, 2),
    }


def seconds_of_sampling(trainer: Any, images: int, wait: Callable[[], None]) -> float:
    """Seconds of the second of two passes of the program's evaluation sampler, decoding included."""
    from sdpo_bench.evaluation import evaluate as ev

    policy, settings, size = trainer.policy, trainer.config.eval, trainer.context.micro_batch.size
    schedule = ev.evaluation_schedule(policy, settings, trainer.schedule.num_steps)
    pairs = [(trainer.prompts[i % len(trainer.prompts)], i) for i in range(images)]
    for _ in range(2):
        wait()
        start = time.perf_counter()
        ev.sample_images(policy, schedule, settings, pairs, size)
        wait()
        seconds = time.perf_counter() - start
    return seconds


def peak_bytes(device: str) -> int:
    """Highest memory of the row on a CUDA device, of the process so far elsewhere."""
    import resource

    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def release(device: str) -> None:
    """Give unused memory back before the next row."""
    import gc

    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason(error: Exception) -> str:
    """Why a row has no numbers, in one line."""
    from sdpo_bench.system.memory_retry import is_out_of_memory

    if isinstance(error, Unmeasured) or is_out_of_memory(error):
        return "out of memory"
    text = f"{type(error).__name__}: {error}".strip().split("\n")[0][:200]
    compiling = any(type(e).__module__.startswith(("torch._dynamo", "torch._inductor")) for e in chain(error))
    return f"compile failed: {text}" if compiling else text


def describe(options: dict[str, Any]) -> dict[str, Any]:
    """The card, the versions and the arithmetic in use."""
    import diffusers
    import peft
    import torch

    on_cuda = options["device"].startswith("cuda")
    return {
        "card": torch.cuda.get_device_name(options["device"]) if on_cuda else "none (CPU)",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "precision": options["precision"],
        "tf32": {
            "matrix products": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        },
    }


# -- in the main process -------------------------------------------------------------------------------------


def write_model(small: bool, folder: Path) -> None:
    """SD-Turbo's architecture, or a tiny pipeline of the same parts, with random weights."""
    from sdpo_bench.models.pipeline_files import published
    from tools.random_pipeline import NOISE, SMALL, write_pipeline

    if small:
        scheduler = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"} | NOISE
        unet = {k: v for k, v in SMALL["lcm"]["unet"].items() if k != "time_cond_proj_dim"}
        write_pipeline(SMALL["lcm"] | {"unet": unet, "scheduler": scheduler}, folder)
        return
    known = published("sd-turbo")
    assert known is not None
    write_pipeline(known.configs, folder)


def in_time(until: float, target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """What a fresh process sends through the connection that it gets as last argument, until the time ``until``.

    Raises:
        TimeoutError: it had to be stopped. ChildProcessError: it died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, sender))
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, until - time.monotonic())):
            try:
                yield receiver.recv()
            except EOFError:
                process.join(MARGIN)
                if process.exitcode:
                    raise ChildProcessError(f"its process ended with exit code {process.exitcode}") from None
                return
        raise TimeoutError("no time")
    finally:
        process.kill()
        process.join()


def write_and_say(small: bool, folder: Path, answers: Connection) -> None:
    """:func:`write_model` in a process of its own."""
    write_model(small, folder)
    answers.send("written")


def measure_all(options: dict[str, Any], model: Path, until: float, save: Callable[[dict, list[Row]], None]) -> None:
    """Measure all modes one after the other, each in an equal share of the time that is left."""
    about: dict[str, Any] = {}
    rows: list[Row] = []
    try:
        list(in_time(until, write_and_say, options["small"], model))
        failed = ""
    except (TimeoutError, ChildProcessError) as error:
        failed = f"the model was not written: {error}"
    for number, mode in enumerate(options["compile"]):
        sizes, why = list(options["micro_batch"]), failed
        share = (until - time.monotonic()) / (len(options["compile"]) - number)
        try:
            if not failed:
                for answer in in_time(time.monotonic() + share, measure_mode, mode, sizes, str(model), options):
                    if "micro_batch" not in answer:
                        about = answer
                        continue
                    rows.append(answer)
                    print(json.dumps(answer), flush=True)
                    save(about, rows)
        except (TimeoutError, ChildProcessError) as error:
            why = str(error)
        measured = {row["micro_batch"] for row in rows if row["compile"] == mode}
        rows += [{"compile": mode, "micro_batch": s, "unmeasured": why} for s in sizes if s not in measured]
        save(about, rows)


def markdown(about: dict[str, Any], options: dict[str, Any], rows: list[Row]) -> str:
    """The table, with what it was measured on."""
    model = "0.2 M-parameter UNet" if options["small"] else "SD-Turbo's architecture"
    lines = [f"{model}, random weights; SDPO, {options['steps']} steps; times out after {options['minutes']:g} minutes"]
    lines += ["", "| | |", "|---|---|"]
    for name, value in about.items():
        text = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"| {name} | {text} |")
    head = ["compile", "micro-batch", *NUMBERS.values(), "not measured because"]
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in sorted(rows, key=lambda row: (options["compile"].index(row["compile"]), row["micro_batch"])):
        numbers = [str(row.get(name, "")) for name in NUMBERS]
        why = row.get("unmeasured", "").replace("|", "\\|")
        lines.append(f"| {row['compile']} | {row['micro_batch']} | {' | '.join(numbers)} | {why} |")
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="end within this time (default 9)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a 0.2 M-parameter model, to try the script")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps (default 4)")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=list(MICRO_BATCHES))
    parser.add_argument("--compile", nargs="+", default=list(MODES), metavar="MODE", help="off, a backend, a mode")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "tf32", "bf16", "fp16"))
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    if not math.isfinite(given.minutes) or given.minutes <= 0 or min(given.micro_batch) < 1:
        parser.error("--minutes and --micro-batch must be positive")
    return given


def main() -> None:
    start = time.monotonic()
    options = vars(arguments())
    out: Path = options.pop("out")
    out.mkdir(parents=True, exist_ok=True)

    def save(about: dict[str, Any], rows: list[Row]) -> None:
        everything = {"machine": about, "options": options, "rows": rows}
        (out / "gpu.json").write_text(json.dumps(everything, indent=1) + "\n")
        (out / "gpu.md").write_text(markdown(about, options, rows))

    with tempfile.TemporaryDirectory() as scratch:
        measure_all(options, Path(scratch) / "model", start + 60 * options["minutes"] - MARGIN, save)
    print((out / "gpu.md").read_text(), end="")


if __name__ == "__main__":
    main()
