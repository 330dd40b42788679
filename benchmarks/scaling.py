"""How do cost per image, memory and report time grow? And a paper estimate for SD-Turbo on 1 to 8 GPUs.

    python -m benchmarks.scaling [--out scaling.png]         measured on the embedded model, and on synthetic runs
    python -m benchmarks.scaling --paper                      counted, not measured: FLOPs and bytes of SD-Turbo

The measured part varies T, pairs and prompts one at a time, each case in a process of its own (CPU seconds per image,
peak memory), and the number of runs that ``report`` reads (made by ``report_many_runs``). The paper estimate counts a
UNet pass by torch's FLOP counter on tensors without content, takes a stated share of a card's peak rate, and adds the
bytes of one gradient exchange per optimiser step. It is an estimate; nothing ran on a GPU. Prints JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from benchmarks import apart, epochs, report_many_runs

GRID = {"steps": (1, 2, 5, 10, 20, 50), "pairs": (2, 4, 8, 16, 32), "prompts": (1, 8, 45)}
BASE = {"steps": 5, "pairs": 8, "prompts": 45}
RUNS = (100, 1000, 10000)
PEAK_FLOPS, UTILISATION = 990e12, 0.35  # dense bf16 of an H100 SXM by its data sheet; share reached by well-fed UNets
LINK = 100e9  # bytes a second of an all-reduce between GPUs of one machine
REPEATS = 3


def train_case(axis: str, value: int, folder: Path) -> None:
    """The median epoch of one case; the row is left in ``row.json``."""
    import resource
    from statistics import median

    from sdpo_bench.prompts.prompt_sets import load_prompts

    torch.set_num_threads(1)
    case = BASE | {axis: value}
    folder.mkdir()
    texts = folder / "prompts.txt"
    texts.write_text("\n".join(load_prompts("simple-animals")[: case["prompts"]]) + "\n")
    trainer = epochs.make_trainer(
        "emoji-turbo",
        "sdpo",
        folder,
        steps=case["steps"],
        pairs=case["pairs"],
        reward="emoji-align",
        **{"sample.prompts": str(texts), "update.minibatch": 2},
    )
    epochs.epoch(trainer)
    seconds = median(epochs.cpu_seconds(lambda: epochs.epoch(trainer)) for _ in range(REPEATS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {"cpu_ms_per_image": round(500 * seconds / case["pairs"], 1), "peak_mb": round(peak)}
    (folder / "row.json").write_text(json.dumps({"axis": axis, "value": value} | row))


def report_case(runs: int, folder: Path) -> dict:
    """Seconds and peak memory of the terminal report of so many synthetic runs."""
    report_many_runs.make_folders(folder, runs)
    found = report_many_runs.measure(folder, report_many_runs.COMMANDS["report --format terminal"])
    return {"axis": "runs", "value": runs, "seconds": found["seconds"], "peak_mb": found["peak_mib"]}


def measured(folder: Path) -> list[dict]:
    """All rows, one axis varied at a time; each is printed as soon as it is there."""
    rows = []
    for axis, value in [(axis, value) for axis, values in GRID.items() for value in values]:
        apart.apart(train_case, axis, value, folder / f"{axis}-{value}")
        rows.append(json.loads((folder / f"{axis}-{value}" / "row.json").read_text()))
        print(json.dumps(rows[-1]), flush=True)
    for runs in RUNS:
        rows.append(report_case(runs, folder / f"runs-{runs}"))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """Cost above, memory below, one column an axis; the last column is the report over its runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {
        "steps": "denoising steps T",
        "pairs": "pairs an epoch",
        "prompts": "prompts",
        "runs": "runs in the report",
    }
    figure, panels = pyplot.subplots(2, len(names), figsize=(12, 5), sharex="col", layout="constrained")
    for column, (axis, name) in enumerate(names.items()):
        mine = [row for row in rows if row["axis"] == axis]
        cost = "seconds" if axis == "runs" else "cpu_ms_per_image"
        for panel, key in zip(panels[:, column], (cost, "peak_mb")):
            panel.plot([row["value"] for row in mine], [row[key] for row in mine], "o-")
            panel.set_xscale("log")
            panel.set_xticks(values := [row["value"] for row in mine], [f"{value:,}" for value in values])
            panel.minorticks_off()
            panel.set_ylim(0, 1.1 * max(row[key] for row in mine))
        panels[0, column].set_ylabel("seconds" if axis == "runs" else "CPU ms per image")
        panels[1, column].set_ylabel("peak memory, MB")
        panels[1, column].set_xlabel(name)
    figure.savefig(path, dpi=110)


def unet_flops() -> dict[str, float]:
    """FLOPs of SD-Turbo's UNet for one latent, forward alone and with the backward pass to its adapter.

    Attention runs as plain matrix products here: torch's counter takes the CPU's fused kernel for 0 FLOPs.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from sdpo_bench.estimates import activations
    from sdpo_bench.models.pipeline_files import published
    from sdpo_bench.settings import ModelSettings

    files = published("sd-turbo")
    assert files is not None
    task = activations.make_task(files, ModelSettings(name="sd-turbo"), 64)
    with torch.device("meta"):
        unet = activations.make_network(files.configs["unet"], "UNet2DConditionModel")
        adapter = activations.add_adapter(unet, task)
    found = {"adapter": float(adapter)}
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        activations.give_storage(unet, torch.float32)
        family = files.family("sd-turbo")
        arguments = activations.make_arguments(family, files.configs, 64, torch.float32)
        for name, grad in (("forward", False), ("forward and backward", True)):
            with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
                output = family.predict(unet, *arguments, guidance=1.0)
                if grad:
                    output.sum().backward()
            found[name] = float(counter.get_total_flops())
    return found


def paper(images: int = 256, steps: int = 50, minibatch: int = 8, accumulation: int = 8) -> list[dict]:
    """Seconds of one SDPO epoch of SD-Turbo in bf16 by the number of GPUs: denoiser alone, rewards excluded."""
    from sdpo_bench.plugins.registry import find
    from sdpo_bench.rollout.group_cost import group_cost

    plugin = find("methods", "sdpo").load()
    cost = group_cost(plugin(plugin.Settings()), [1.0] * steps, inner_epochs=1, guided=False)
    flops, pairs = unet_flops(), images // 2
    backward = flops["forward and backward"] - flops["forward"]
    total = pairs * (cost.forward * flops["forward"] + cost.backward * backward)
    optimiser_steps = steps * pairs // (minibatch * accumulation)
    rows = []
    for gpus in (1, 2, 4, 8):
        exchange = optimiser_steps * 2 * (gpus - 1) / gpus * flops["adapter"] * 4 / LINK
        seconds = total / gpus / (PEAK_FLOPS * UTILISATION) + exchange
        rows.append(
            {
                "gpus": gpus,
                "pflop_per_epoch": round(total / 1e15, 1),
                "seconds_per_epoch": round(seconds, 1),
                "exchange_seconds": round(exchange, 4),
                "images_per_second": round(images / seconds, 2),
                "estimate": True,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("scaling.png"), help="where the plot goes")
    parser.add_argument("--paper", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.paper:
        for row in paper():
            print(json.dumps(row))
        return
    with tempfile.TemporaryDirectory() as folder:
        plot(measured(Path(folder)), options.out)


if __name__ == "__main__":
    main()
