"""Do the loaders hold at the published size? The tests have tiny checkpoints; this makes full-size random ones.

Writes HPS v2 (ViT-H/14, float16), ImageReward (ViT-L/16 with BERT), PickScore (ViT-H/14) and the aesthetic predictor
with its CLIP (ViT-L/14, which CLIPScore reads too) in the published layout, loads each through the reward's own code,
scores one picture, and reports seconds and peak memory. Each part runs in a process of its own, so that peaks do not
mix. Needs about 9 GB of memory and 4 GB of disk; the tokenizers are stand-ins.

    python -m benchmarks.full_size_checkpoints [REWARD...] [--keep FOLDER] [--device cpu] [--precision fp32]
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.apart import apart

TABLE = Path(__file__).parent.parent / "tests" / "fixtures" / "clip_table_excerpt"
WORDS = [
    "[PAD]",
    *(f"[unused{i}]" for i in range(99)),
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
]
REWARDS = ("hpsv2", "imagereward", "pickscore", "aesthetic")
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def open_clip_blocks(prefix: str, layers: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for layer in range(layers):
        at = f"{prefix}transformer.resblocks.{layer}"
        shapes |= norm(f"{at}.ln_1", width) | norm(f"{at}.ln_2", width)
        shapes |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{at}.attn.out_proj", width, width)
        shapes |= linear(f"{at}.mlp.c_fc", 4 * width, width) | linear(f"{at}.mlp.c_proj", width, 4 * width)
    return shapes


def hps_shapes(width=1280, layers=32, patch=14, text_width=1024, text_layers=24, joint=1024) -> Shapes:
    """Keys and shapes of ``HPS_v2_compressed.pt``."""
    shapes: Shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((224 // patch) ** 2 + 1, width),
        "visual.proj": (width, joint),
        "visual.conv1.weight": (width, 3, patch, patch),
        "token_embedding.weight": (49408, text_width),
        "positional_embedding": (77, text_width),
        "text_projection": (text_width, joint),
        "logit_scale": (),
    }
    shapes |= norm("visual.ln_pre", width) | norm("visual.ln_post", width) | norm("ln_final", text_width)
    shapes |= open_clip_blocks("visual.", layers, width)
    return shapes | open_clip_blocks("", text_layers, text_width)


def vit_shapes(width: int, layers: int) -> Shapes:
    at = "blip.visual_encoder"
    shapes: Shapes = {f"{at}.cls_token": (1, 1, width), f"{at}.pos_embed": (1, 197, width)}
    shapes |= {f"{at}.patch_embed.proj.weight": (width, 3, 16, 16), f"{at}.patch_embed.proj.bias": (width,)}
    for layer in range(layers):
        block = f"{at}.blocks.{layer}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    return shapes | norm(f"{at}.norm", width)


def attention_shapes(at: str, width: int, source: int) -> Shapes:
    shapes = linear(f"{at}.self.query", width, width) | linear(f"{at}.output.dense", width, width)
    shapes |= linear(f"{at}.self.key", width, source) | linear(f"{at}.self.value", width, source)
    return shapes | norm(f"{at}.output.LayerNorm", width)


def bert_shapes(width: int, layers: int, image_width: int) -> Shapes:
    at = "blip.text_encoder"
    shapes: Shapes = {
        f"{at}.embeddings.position_ids": (1, 512),
        f"{at}.embeddings.word_embeddings.weight": (30524, width),
        f"{at}.embeddings.position_embeddings.weight": (512, width),
    }
    shapes |= norm(f"{at}.embeddings.LayerNorm", width)
    for layer in range(layers):
        block = f"{at}.encoder.layer.{layer}"
        shapes |= attention_shapes(f"{block}.attention", width, width)
        shapes |= attention_shapes(f"{block}.crossattention", width, image_width)
        shapes |= linear(f"{block}.intermediate.dense", 4 * width, width)
        shapes |= linear(f"{block}.output.dense", width, 4 * width) | norm(f"{block}.output.LayerNorm", width)
    return shapes


def imagereward_shapes(width=1024, layers=24, text_width=768, text_layers=12) -> Shapes:
    """Keys and shapes of ``ImageReward.pt``."""
    shapes = vit_shapes(width, layers) | bert_shapes(text_width, text_layers, width)
    shapes |= linear("blip.vision_proj", 256, width) | linear("blip.text_proj", 256, text_width)
    return shapes | {f"mlp.{key}": shape for key, shape in head_shapes(text_width).items()}


def head_shapes(width: int) -> Shapes:
    """The linear head that ImageReward and the aesthetic predictor share."""
    shapes: Shapes = {}
    sizes = (width, 1024, 128, 64, 16, 1)
    for number, inputs, outputs in zip((0, 2, 4, 6, 7), sizes, sizes[1:]):
        shapes |= linear(f"layers.{number}", outputs, inputs)
    return shapes


def write_clip(folder: Path, vision: dict[str, int], text: dict[str, int], joint: int, activation: str) -> None:
    """A ``CLIPModel`` folder as transformers saves it, float32."""
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    both = {"hidden_act": activation, "projection_dim": joint}
    config = CLIPConfig(vision_config=vision | both, text_config=text | both, projection_dim=joint)
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in CLIPModel(config).state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: random_tensor(key, shape, torch.float32) for key, shape in shapes.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


HUGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
HUGE_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
LARGE_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
FOURTEEN = {"patch_size": 14, "image_size": 224}


def random_tensor(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Numbers of the size that trained weights have, so that scores are finite and not all alike."""
    if key.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).clone()
    if key == "logit_scale":
        return torch.tensor(4.6052, dtype=dtype)
    if len(shape) == 1 and key.endswith("weight"):
        return torch.ones(shape, dtype=dtype)
    spread = max(0.02, 0.7 * shape[-1] ** -0.5) if len(shape) == 2 else 0.02
    return (torch.randn(shape) * spread).to(dtype)


def write(name: str, folder: Path) -> None:
    """The checkpoint of reward ``name`` and what belongs beside it."""
    torch.manual_seed(0)
    if name == "pickscore":
        write_clip(folder, HUGE | FOURTEEN, HUGE_TEXT, 1024, "gelu")
        return
    if name == "aesthetic":
        write_clip(folder / "clip", LARGE | FOURTEEN, LARGE_TEXT, 768, "quick_gelu")
        shapes, dtype, file = head_shapes(768), torch.float32, "aesthetic-model.pth"
    elif name == "hpsv2":
        shapes, dtype, file = hps_shapes(), torch.float16, "HPS_v2_compressed.pt"
    else:
        shapes, dtype, file = imagereward_shapes(), torch.float32, "ImageReward.pt"
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        text = {"vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        text |= {"num_attention_heads": 12, "max_position_embeddings": 512, "hidden_act": "gelu"}
        text |= {"layer_norm_eps": 1e-12, "pad_token_id": 0, "encoder_width": 1024, "add_cross_attention": True}
        text |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "type_vocab_size": 2}
        (folder / "med_config.json").write_text(json.dumps(text))
    state = {key: random_tensor(key, shape, dtype) for key, shape in shapes.items()}
    torch.save({"state_dict": state} if name == "hpsv2" else state, folder / file)


def measure(name: str, folder: Path, device: str, precision: str, answers) -> None:
    """Load and score one picture; puts seconds, peak memory and the score into the queue ``answers``."""
    from sdpo_bench.plugins.registry import find

    plugin = find("rewards", name).load()
    paths = {"path": str(folder)} | ({"tokenizer_path": str(TABLE)} if name in ("hpsv2", "pickscore") else {})
    paths |= {"clip_path": str(folder / "clip")} if name == "aesthetic" else {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    reward = plugin(plugin.Settings(**paths, precision=precision), device).load()
    loaded = time.perf_counter()
    torch.manual_seed(1)
    image = torch.rand(1, 3, 8, 8).repeat_interleave(64, -1).repeat_interleave(64, -2)
    score = reward(image, ["a cat"]).item()
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers.put((loaded - start, end - loaded, before / 2**20, peak / 2**20, score))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rewards", nargs="*", default=list(REWARDS), choices=REWARDS)
    parser.add_argument("--keep", type=Path, help="write the checkpoints here and leave them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    given = parser.parse_args()
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.rewards:
            folder = (given.keep or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            apart(write, name, folder)
            apart(measure, name, folder, given.device, given.precision, answers)
            load, score, before, peak, value = answers.get()
            print(
                f"{name}: load {load:.1f} s, one picture {score:.2f} s, peak {peak:.1f} GiB "
                f"(libraries alone {before:.1f}), score {value:.5f}"
            )


if __name__ == "__main__":
    main()
