"""Last stages: the pipeline folder and the scorers as the package ships them, in half precision."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from sdpo_bench.prompts.emoji_grammar import CLASSES

from .distill import load_base
from .networks import make_scheduler, make_tokenizer


def save_pipeline(folder: Path, target: Path, unet: str = "unet") -> None:
    """Write ``target``, a ``StableDiffusionPipeline`` folder of the trained parts in ``folder``."""
    from diffusers import AutoencoderTiny, StableDiffusionPipeline

    denoiser, text = load_base(folder, unet)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(folder / "vae"),
        text_encoder=text,
        tokenizer=make_tokenizer(),
        unet=denoiser,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(target)
    forget_paths(target)


def forget_paths(target: Path) -> None:
    """Remove the training machine's folder names, which diffusers writes into every configuration."""
    for path in target.rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n")


def save_scorers(folder: Path, target: Path) -> None:
    """Write ``align.safetensors``, ``accuracy.safetensors`` and ``scorers.json`` to ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    facts = {"classes": list(CLASSES), "nothing": len(CLASSES), "networks": {}}
    for name in ("align", "accuracy"):
        weights = torch.load(folder / f"{name}.pt", weights_only=True)
        save_file({key: value.half().contiguous() for key, value in weights.items()}, target / f"{name}.safetensors")
        facts["networks"][name] = {"parameters": sum(v.numel() for v in weights.values()), "dtype": "float16"}
    (target / "scorers.json").write_text(json.dumps(facts, indent=2) + "\n")
