"""What one latent costs in memory: a training step, sampling and decoding on tensors with shapes and no content.

The bytes alive at the peak are counted, so that the estimates of ``memory_estimate`` need no table of architectures
and no weights.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from sdpo_bench.models.families import Configs, Family, family_of
from sdpo_bench.models.pipeline_files import PipelineFiles
from sdpo_bench.settings import ModelSettings

WIDTH = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a number by ``model.precision``."""


def weight_bytes(files: PipelineFiles, model: str, precision: str) -> dict[str, int]:
    """Bytes of each network's weights in memory; an autoencoder that overflows in half precision stays float32."""
    wide = files.family(model).upcast_vae(files.configs)
    width = WIDTH[precision]
    return {part: count * (4 if part == "vae" and wide else width) for part, count in files.numbers.items()}


def make_task(files: PipelineFiles, model: ModelSettings, side: int) -> dict[str, Any]:
    family = files.family(model.name)
    networks = {part: files.configs[part] for part in (family.denoiser, "vae")}
    return {
        "configs": networks | {part: {} for part in family.encoders if part in files.configs},
        "side": side,
        "rank": model.lora_rank,
        "targets": list(model.lora_targets),
        "precision": model.precision,
        "checkpointing": model.gradient_checkpointing,
    }


@lru_cache(maxsize=16)
def trace(task_json: str) -> dict[str, int]:
    """Adapter parameters, and bytes alive at the peak of a training step, sampling and decoding, for one latent."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    task = json.loads(task_json)
    dtype = {4: torch.float32, 2: torch.bfloat16}[WIDTH[task["precision"]]]
    configs = task["configs"]
    family = family_of(configs, "this model")
    with torch.device("meta"):
        denoiser = make_network(configs[family.denoiser], family.network)
        vae = make_network(configs["vae"], "AutoencoderKL")
        adapter = add_adapter(denoiser, task)
    with FakeTensorMode():
        for network in (denoiser, vae):
            give_storage(network, dtype)
        arguments = make_arguments(family, configs, task["side"], dtype)

        def forward() -> torch.Tensor:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                return family.predict(denoiser, *arguments, guidance=1.0)

        # Backward only where it recomputes: else the peak is at its beginning.
        backward = task["checkpointing"]
        training = _peak(denoiser, lambda: forward().float().sum().backward() if backward else forward())
        with torch.no_grad():
            sampling = _peak(denoiser, forward)
            latents = family.unscaled(vae, arguments[0])
            decoding = _peak(vae, lambda: vae.decode(latents, return_dict=False))
    return {"adapter": adapter, "training": training, "sampling": sampling, "decoding": decoding}


def make_network(config: Mapping[str, Any], default: str) -> Any:
    """A frozen network of diffusers; ``default`` is its class where the configuration names none."""
    import diffusers

    kind = getattr(diffusers, config.get("_class_name", default))
    return kind.from_config(config).requires_grad_(False).eval()


def add_adapter(denoiser: Any, task: Mapping[str, Any]) -> int:
    from peft import LoraConfig

    if task["checkpointing"]:
        denoiser.enable_gradient_checkpointing()
    config = LoraConfig(r=task["rank"], target_modules=task["targets"], init_lora_weights=False)
    try:
        denoiser.add_adapter(config)
    except ValueError:
        return 0  # targets that fit nothing are refused, with advice, where the adapter is really made
    return sum(p.numel() for name, p in denoiser.named_parameters() if "lora_" in name)


def give_storage(network: Any, dtype: Any) -> None:
    """Replace parameters and buffers without a device by ones that seem to be on the CPU (in a FakeTensorMode)."""
    import torch

    for module in network.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                new = torch.empty(old.shape, dtype=torch.float32 if old.requires_grad else dtype)
                module._parameters[name] = torch.nn.Parameter(new, requires_grad=old.requires_grad)
        for tensors in (module._buffers, vars(module)):  # some networks keep tables beside their buffers
            for name, old in list(tensors.items()):
                if isinstance(old, torch.Tensor) and old.is_meta:
                    tensors[name] = torch.empty(old.shape, dtype=old.dtype)


def make_arguments(family: Family, configs: Configs, side: int, dtype: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Latents, timesteps and conditioning of one latent, at the longest prompt."""
    import torch

    latents = torch.empty(1, family.channels(configs), side, side, dtype=dtype)
    timesteps = torch.empty(1, dtype=torch.float32 if family.flow else torch.int64)
    shapes = family.text_shapes(configs)
    return latents, timesteps, {name: torch.empty(1, *shape, dtype=dtype) for name, shape in shapes.items()}


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
