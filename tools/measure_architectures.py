"""Measure what one latent of each known model costs in memory, and write it beside the model's architecture.

    python -m tools.measure_architectures

Only shapes are computed (see ``sdpo_bench.estimates.activations``); it takes minutes.
Needed again when diffusers changes its networks.
"""

import json
from pathlib import Path

from sdpo_bench.estimates.activations import make_task, trace
from sdpo_bench.hashing import canonical_json
from sdpo_bench.models.pipeline_files import PipelineFiles
from sdpo_bench.settings import ModelSettings

FOLDER = Path(__file__).parent.parent / "sdpo_bench" / "assets" / "architectures"


def measure(files: PipelineFiles) -> dict:
    """Adapter parameters by rank, and bytes by precision, with and without gradient checkpointing."""
    found: dict = {}
    for name, precision in (("fp32", "fp32"), ("half", "bf16")):
        sizes = {}
        for kind, recompute in (("training", False), ("checkpointed", True)):
            settings = ModelSettings(precision=precision, gradient_checkpointing=recompute)
            task = make_task(files, settings, files.configs["unet"]["sample_size"])
            traced = trace(canonical_json(task))
            sizes |= {kind: traced["training"], "sampling": traced["sampling"], "decoding": traced["decoding"]}
            found["adapter_per_rank"] = traced["adapter"] // settings.lora_rank
        found[name] = sizes
    return found


def main() -> None:
    for path in sorted(FOLDER.glob("*.json")):
        data = json.loads(path.read_text())
        data["measured"] = measure(PipelineFiles(data["configs"], data["parameters"]))
        path.write_text(json.dumps(data, indent=1) + "\n")
        print(path.stem, data["measured"], flush=True)


if __name__ == "__main__":
    main()
