"""How do cost per image and memory grow with T, batch and prompts? And a paper estimate for SD-Turbo on 1 to 8 GPUs.

    python -m benchmarks.scaling [--out scaling.png]         measured on the embedded model (CPU seconds per image)
    python -m benchmarks.scaling --paper                      counted, not measured: FLOPs and bytes of SD-Turbo

The paper estimate counts a UNet pass by torch's FLOP counter on tensors without content, takes a stated share of a
card's peak rate, and adds the bytes of one gradient exchange per optimiser step. It is an estimate; nothing ran on a
GPU. How ``report`` grows with the number of runs is measured by ``report_many_runs``. Prints JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from benchmarks import epochs

GRID = {"steps": (1, 2, 4, 8), "pairs": (2, 4, 8), "prompts": (1, 8, 45)}
BASE = {"steps": 4, "pairs": 4, "prompts": 45}
PEAK_FLOPS, UTILISATION = 990e12, 0.35  # dense bf16 of an H100 SXM by its data sheet; share reached by well-fed UNets
LINK = 100e9  # bytes a second of an all-reduce between GPUs of one machine


def measured(folder: Path) -> list[dict]:
    """CPU seconds per image and resident memory, one axis varied at a time."""
    import psutil

    rows = []
    for axis, values in GRID.items():
        for value in values:
            case = BASE | {axis: value}
            texts = folder / f"prompts-{axis}-{value}.txt"
            from sdpo_bench.prompts import load_prompts

            texts.write_text("\n".join(load_prompts("simple-animals")[: case["prompts"]]) + "\n")
            trainer = epochs.make_trainer(
                "emoji-turbo", "sdpo", folder / f"{axis}-{value}", steps=case["steps"], pairs=case["pairs"],
                reward="emoji-align", **{"sample.prompts": str(texts), "update.minibatch": 2},
            )  # fmt: skip
            epochs.epoch(trainer)
            seconds = epochs.cpu_seconds(lambda: epochs.epoch(trainer))  # noqa: B023
            rows.append(
                {
                    "axis": axis, "value": value, "cpu_ms_per_image": round(500 * seconds / case["pairs"], 1),
                    "resident_mb": round(psutil.Process().memory_info().rss / 2**20),
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """One panel an axis, cost per image over its values."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(GRID), figsize=(10, 3), sharey=True)
    for panel, axis in zip(panels, GRID):
        mine = [row for row in rows if row["axis"] == axis]
        panel.plot([r["value"] for r in mine], [r["cpu_ms_per_image"] for r in mine], "o-")
        panel.set_xlabel({"steps": "denoising steps T", "pairs": "pairs an epoch", "prompts": "prompts"}[axis])
    panels[0].set_ylabel("CPU ms per image")
    figure.tight_layout()
    figure.savefig(path)


def unet_flops() -> dict[str, float]:
    """FLOPs of SD-Turbo's UNet for one latent, forward alone and with the backward pass to its adapter."""
    import diffusers
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from sdpo_bench import memory
    from sdpo_bench.pipeline_files import published
    from sdpo_bench.settings import ModelSettings

    files = published("sd-turbo")
    assert files is not None
    task = memory._task(files, ModelSettings(name="sd-turbo"), 64)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(files.configs["unet"]).requires_grad_(False).eval()
        adapter = memory._add_adapter(unet, task)
    found = {"adapter": float(adapter)}
    with FakeTensorMode():
        memory._give_storage(unet, torch.float32)
        told = memory._arguments(unet.config, 64, torch.float32)
        for name, grad in (("forward", False), ("forward and backward", True)):
            with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
                output = unet(**told, return_dict=False)[0]
                if grad:
                    output.sum().backward()
            found[name] = float(counter.get_total_flops())
    return found


def paper(images: int = 256, steps: int = 50, minibatch: int = 8, accumulation: int = 8) -> list[dict]:
    """Seconds of one SDPO epoch of SD-Turbo in bf16 by the number of GPUs: denoiser alone, rewards excluded."""
    from sdpo_bench.cost import group_cost
    from sdpo_bench.registry import find

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
                "gpus": gpus, "pflop_per_epoch": round(total / 1e15, 1), "seconds_per_epoch": round(seconds, 1),
                "exchange_seconds": round(exchange, 4), "images_per_second": round(images / seconds, 2),
                "estimate": True,
            }
        )  # fmt: skip
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
