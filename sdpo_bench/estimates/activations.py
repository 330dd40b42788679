"""What one latent costs in memory: a training step, sampling and decoding on tensors with shapes and no content.

The bytes alive at the peak are counted, so that the estimates of ``memory_estimate`` need no table of architectures
and no weights.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from sdpo_bench.models.pipeline_files import PipelineFiles
from sdpo_bench.settings import ModelSettings

WIDTH = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a number by ``model.precision``."""


def make_task(files: PipelineFiles, model: ModelSettings, side: int) -> dict[str, Any]:
    return {
        "unet": files.configs["unet"],
        "vae": files.configs["vae"],
        "side": side,
        "rank": model.lora_rank,
        "targets": list(model.lora_targets),
        "precision": model.precision,
        "checkpointing": model.gradient_checkpointing,
    }


@lru_cache(maxsize=16)
def trace(task_json: str) -> dict[str, int]:
    """Adapter parameters, and bytes alive at the peak of a training step, sampling and decoding, for one latent."""
    import diffusers
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    task = json.loads(task_json)
    dtype = {4: torch.float32, 2: torch.bfloat16}[WIDTH[task["precision"]]]
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(task["unet"]).requires_grad_(False).eval()
        vae_class = getattr(diffusers, task["vae"].get("_class_name", "AutoencoderKL"))
        vae = vae_class.from_config(task["vae"]).requires_grad_(False).eval()
        adapter = add_adapter(unet, task)
    with FakeTensorMode():
        for network in (unet, vae):
            give_storage(network, dtype)
        arguments = make_arguments(unet.config, task["side"], dtype)
        training = _peak(unet, lambda: _training_step(unet, arguments, dtype, task["checkpointing"]))
        latent = torch.empty(1, int(unet.config.in_channels), task["side"], task["side"], dtype=dtype)
        with torch.no_grad():
            sampling = _peak(unet, lambda: _training_step(unet, arguments, dtype, recompute=False))
            decoding = _peak(vae, lambda: vae.decode(latent, return_dict=False))
    return {"adapter": adapter, "training": training, "sampling": sampling, "decoding": decoding}


def add_adapter(unet: Any, task: Mapping[str, Any]) -> int:
    from peft import LoraConfig

    if task["checkpointing"]:
        unet.enable_gradient_checkpointing()
    config = LoraConfig(r=task["rank"], target_modules=task["targets"], init_lora_weights=False)
    try:
        unet.add_adapter(config)
    except ValueError:
        return 0  # targets that fit nothing are refused, with advice, where the adapter is really made
    return sum(p.numel() for name, p in unet.named_parameters() if "lora_" in name)


def give_storage(network: Any, dtype: Any) -> None:
    """Replace parameters without a device by ones that pretend to be on the CPU (inside a FakeTensorMode)."""
    import torch

    for module in network.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                new = torch.empty(old.shape, dtype=torch.float32 if old.requires_grad else dtype)
                module._parameters[name] = torch.nn.Parameter(new, requires_grad=old.requires_grad)


def make_arguments(config: Any, side: int, dtype: Any) -> dict[str, Any]:
    import torch

    width = config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    arguments: dict[str, Any] = {
        "sample": torch.empty(1, config.in_channels, side, side, dtype=dtype),
        "timestep": torch.empty(1, dtype=torch.int64),
        "encoder_hidden_states": torch.empty(1, 77, width, dtype=dtype),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        arguments["added_cond_kwargs"] = {
            "text_embeds": torch.empty(1, pooled, dtype=dtype),
            "time_ids": torch.empty(1, 6, dtype=dtype),
        }
    if config.time_cond_proj_dim:
        arguments["timestep_cond"] = torch.empty(1, config.time_cond_proj_dim, dtype=dtype)
    return arguments


def _training_step(unet: Any, arguments: Mapping[str, Any], dtype: Any, recompute: bool) -> None:
    """Forward with gradients; backward only where it recomputes, since else the peak is at its beginning."""
    import torch

    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = unet(**arguments, return_dict=False)[0]
    if recompute:
        output.float().sum().backward()


def _peak(network: Any, work: Callable[[], Any]) -> int:
    """Bytes of tensors made by ``work`` and alive at once, at most."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    storages: dict[int, Any] = {p.untyped_storage()._cdata: None for p in network.parameters()}
    alive = {"now": 0, "peak": 0}

    def release(key: int, size: int) -> None:
        alive["now"] -= size
        storages.pop(key, None)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    note(value.untyped_storage())
            return result

    def note(storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in storages:
            storages[key] = weakref.ref(storage, lambda _: release(key, size))
            alive["now"] += size
            alive["peak"] = max(alive["peak"], alive["now"])

    with Watch():
        work()
    return alive["peak"]
