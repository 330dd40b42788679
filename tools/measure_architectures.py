"""Measure what one latent of each known model costs in memory, and write it beside the model's architecture.

    python -m tools.measure_architectures [--count] [NAME ...]

Parameters and persistent buffers are counted where the file names the classes of the text encoders, else taken as they
are there. With --count nothing else is done.
Only shapes are computed (see ``sdpo_bench.estimates.activations``); it takes minutes.
Needed again when diffusers changes its networks.
"""

import json
import sys
from pathlib import Path

from sdpo_bench.estimates.activations import make_network, make_task, trace
from sdpo_bench.hashing import canonical_json
from sdpo_bench.models.pipeline_files import PipelineFiles
from sdpo_bench.settings import ModelSettings

FOLDER = Path(__file__).parent.parent / "sdpo_bench" / "assets" / "architectures"


def measure(files: PipelineFiles) -> dict:
    """Adapter parameters by rank, and bytes by precision, with and without gradient checkpointing."""
    found: dict = {}
    family = files.family("this model")
    for name, precision in (("fp32", "fp32"), ("half", "bf16")):
        sizes = {}
        for kind, recompute in (("training", False), ("checkpointed", True)):
            settings = ModelSettings(
                precision=precision, gradient_checkpointing=recompute, lora_targets=family.lora_targets
            )
            task = make_task(files, settings, family.native_side(files.configs))
            traced = trace(canonical_json(task))
            sizes |= {kind: traced["training"], "sampling": traced["sampling"], "decoding": traced["decoding"]}
            found["adapter_per_rank"] = traced["adapter"] // settings.lora_rank
        found[name] = sizes
    return found


def count(configs: dict) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters of each network, and persistent buffers where it has any (position embeddings of Stable Diffusion 3,
    which its weight files hold). Networks are made without storage; text encoders name their class of transformers."""
    import torch
    import transformers

    parameters, buffers = {}, {}
    for part, config in configs.items():
        if part == "scheduler":
            continue
        with torch.device("meta"):
            if part.startswith("text_encoder"):
                kind = getattr(transformers, config["_class_name"])
                network = kind(kind.config_class(**{k: v for k, v in config.items() if k != "_class_name"}))
            else:
                network = make_network(config, "UNet2DConditionModel" if part == "unet" else "AutoencoderKL")
        parameters[part] = sum(p.numel() for p in network.parameters())
        named = dict(network.named_buffers())
        if stored := sum(named[name].numel() for name in network.state_dict() if name in named):
            buffers[part] = stored
    return parameters, buffers


def main() -> None:
    chosen = [name for name in sys.argv[1:] if name != "--count"]
    for path in sorted(FOLDER.glob("*.json")):
        if chosen and path.stem not in chosen:
            continue
        data = json.loads(path.read_text())
        encoders = [config for part, config in data["configs"].items() if part.startswith("text_encoder")]
        if all("_class_name" in config for config in encoders):
            data["parameters"], data["buffers"] = count(data["configs"])
        if "--count" not in sys.argv:
            data["measured"] = measure(PipelineFiles(data["configs"], data["parameters"]))
        path.write_text(json.dumps(data, indent=1) + "\n")
        print(path.stem, data["parameters"], data.get("buffers"), data["measured"], flush=True)


if __name__ == "__main__":
    main()
