"""How much memory a run will need, before anything is loaded: exact sizes where they are known, a measured rule else.

Weights, adapter and optimiser state follow from parameter counts; stored trajectories from the settings. Activations
are measured, not guessed: the UNet's forward pass with gradients and the autoencoder's decoding run once on tensors
that have shapes and no content, and the bytes alive at the peak are counted. One latent is measured; a micro-batch
costs as many times that. Known models carry that measurement (``tools.measure_architectures``), which grows with the
number of latent elements; networks below ``MEASURED_FROM`` parameters are too small to be worth it. Kernels'
workspaces come on top (``RESERVE``); reward models are not included.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sdpo_bench.errors import MissingError
from sdpo_bench.identity import canonical_json
from sdpo_bench.models import pipeline_files
from sdpo_bench.pipeline_files import PipelineFiles, published
from sdpo_bench.settings import ModelSettings, RunConfig

RESERVE = 0.1  # of the estimate: kernels' workspaces and fragmentation
FRAMEWORK = 0.6e9  # the interpreter with its libraries, or a device context
MEASURED_FROM = 5_000_000  # parameters
WIDTH = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
ADAPTER_BYTES = 16  # a float32 weight, its gradient and two AdamW moments


@dataclass(frozen=True)
class Estimate:
    """Bytes a run needs on its device.

    Attributes:
        parameters: of each network.
        fixed: bytes by purpose, whatever the micro-batch.
        per_latent: bytes of one latent in a training step and of one picture in decoding.
        micro_batch: latents in one denoiser call.
    """

    parameters: Mapping[str, int]
    fixed: Mapping[str, float]
    per_latent: Mapping[str, float]
    micro_batch: int
    host: Mapping[str, float] = field(default_factory=dict)

    @property
    def fixed_bytes(self) -> float:
        return sum(self.fixed.values())

    @property
    def total(self) -> float:
        """Bytes at the peak: what is fixed, and the larger of training and decoding one micro-batch."""
        return self.fixed_bytes + self.micro_batch * self._latent_bytes

    @property
    def _latent_bytes(self) -> float:
        return max(self.per_latent.values(), default=0.0)

    @property
    def least(self) -> float:
        """Bytes at the peak with one latent at a time."""
        return self.fixed_bytes + self._latent_bytes

    def largest_micro_batch(self, available: float) -> int:
        """Most latents in one call that fit into ``available`` bytes, 0 if none do."""
        left = available - self.fixed_bytes
        return max(0, int(left // self._latent_bytes)) if self._latent_bytes else (self.micro_batch if left > 0 else 0)

    def as_data(self) -> dict[str, Any]:
        return {
            "parameters": dict(self.parameters), "fixed_bytes": dict(self.fixed), "micro_batch": self.micro_batch,
            "bytes_per_latent": dict(self.per_latent), "peak_bytes": self.total, "host_bytes": dict(self.host),
        }  # fmt: skip


def estimate(config: RunConfig, micro_batch: int, device: str, processes: int = 1) -> Estimate | None:
    """Memory of each process of a run; ``None`` for a hub model of unknown architecture that is not here yet.

    Raises:
        UsageError, MissingError: a local folder that is not a pipeline, not whole, or damaged.
    """
    files = pipeline_files(config.model)
    if files is None:
        return None
    side = latent_side(files, config.model)
    kind = device.partition(":")[0]
    resting, working = _weights(files, config.model)
    # A trajectory holds T + 1 states, T predicted originals and as much step noise while it is sampled.
    elements = int(files.configs["unet"].get("in_channels", 4)) * side**2
    images = -(-config.sample.images_per_epoch // processes)
    trajectories = 4 * images * (3 * config.schedule.steps + 1) * elements
    offloaded = resting > 0 and kind != "cpu"
    fixed = {
        "weights": working + (0.0 if offloaded else resting),
        "trajectories of an epoch": 0.0 if offloaded else float(trajectories),
        "framework": FRAMEWORK,
    }
    per_latent: dict[str, float] = {}
    if sum(files.parameters.values()) >= MEASURED_FROM:
        measured = _measured(files, config.model, side)
        guided = config.model.guidance_scale > 1 and not files.configs["unet"].get("time_cond_proj_dim")
        fixed["adapter and optimiser"] = measured["adapter"] * ADAPTER_BYTES
        per_latent = {
            "training step": measured["training"] * (2 if guided else 1) * (1 + RESERVE),
            "decoding": measured["decoding"] * (1 + RESERVE),
        }
    host = {"in CPU memory (offloaded)": resting + trajectories} if offloaded else {}
    return Estimate(files.parameters, fixed, per_latent, micro_batch, host)


def _measured(files: PipelineFiles, model: ModelSettings, side: int) -> dict[str, float]:
    """Adapter parameters, bytes of a training step and of decoding for one latent: known, or traced now."""
    known = published(model.name)
    if known is None or not known.measured or model.lora_targets != ModelSettings.lora_targets:
        return dict(_trace(canonical_json(_task(files, model, side))))
    sizes = known.measured["fp32" if WIDTH[model.precision] == 4 else "half"]
    scale = (side / known.configs["unet"]["sample_size"]) ** 2
    training = sizes["checkpointed" if model.gradient_checkpointing else "training"]
    return {
        "adapter": known.measured["adapter_per_rank"] * model.lora_rank,
        "training": training * scale,
        "decoding": sizes["decoding"] * scale,
    }


def latent_side(files: PipelineFiles, model: ModelSettings) -> int:
    """Side of a latent at the model's or the asked resolution."""
    vae = files.configs["vae"]
    levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or (64,)
    return model.resolution // 2 ** (len(levels) - 1) if model.resolution else files.configs["unet"]["sample_size"]


def _weights(files: PipelineFiles, model: ModelSettings) -> tuple[float, float]:
    """Bytes of weights that rest on the CPU and that work on the device (with the largest visitor of the resting)."""
    width = WIDTH[model.precision]
    wide = "text_encoder_2" in files.parameters and files.configs["vae"].get("force_upcast", True)
    sizes = {k: n * (4 if k == "vae" and wide else width) for k, n in files.parameters.items()}
    if not model.cpu_offload:
        return 0.0, float(sum(sizes.values()))
    encoders = sum(v for k, v in sizes.items() if k.startswith("text_encoder"))
    return float(encoders + sizes["vae"]), float(sizes["unet"] + max(encoders, sizes["vae"]))


def _task(files: PipelineFiles, model: ModelSettings, side: int) -> dict[str, Any]:
    return {
        "unet": files.configs["unet"], "vae": files.configs["vae"], "side": side, "rank": model.lora_rank,
        "targets": list(model.lora_targets), "precision": model.precision,
        "checkpointing": model.gradient_checkpointing,
    }  # fmt: skip


@lru_cache(maxsize=16)
def _trace(task_json: str) -> dict[str, int]:
    """Adapter parameters, and bytes alive at the peak of a training step and of decoding, for one latent."""
    import diffusers
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    task = json.loads(task_json)
    dtype = {4: torch.float32, 2: torch.bfloat16}[WIDTH[task["precision"]]]
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(task["unet"]).requires_grad_(False).eval()
        vae_class = getattr(diffusers, task["vae"].get("_class_name", "AutoencoderKL"))
        vae = vae_class.from_config(task["vae"]).requires_grad_(False).eval()
        adapter = _add_adapter(unet, task)
    with FakeTensorMode():
        for network in (unet, vae):
            _give_storage(network, dtype)
        arguments = _arguments(unet.config, task["side"], dtype)
        training = _peak(unet, lambda: _training_step(unet, arguments, dtype, task["checkpointing"]))
        latent = torch.empty(1, int(unet.config.in_channels), task["side"], task["side"], dtype=dtype)
        with torch.no_grad():
            decoding = _peak(vae, lambda: vae.decode(latent, return_dict=False))
    return {"adapter": adapter, "training": training, "decoding": decoding}


def _add_adapter(unet: Any, task: Mapping[str, Any]) -> int:
    from peft import LoraConfig

    if task["checkpointing"]:
        unet.enable_gradient_checkpointing()
    config = LoraConfig(r=task["rank"], target_modules=task["targets"], init_lora_weights=False)
    try:
        unet.add_adapter(config)
    except ValueError:
        return 0  # targets that fit nothing are refused, with advice, where the adapter is really made
    return sum(p.numel() for name, p in unet.named_parameters() if "lora_" in name)


def _give_storage(network: Any, dtype: Any) -> None:
    """Replace parameters without a device by ones that pretend to be on the CPU (inside a FakeTensorMode)."""
    import torch

    for module in network.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                kept = torch.float32 if old.requires_grad else dtype
                new = torch.empty(old.shape, dtype=kept)
                module._parameters[name] = torch.nn.Parameter(new, requires_grad=old.requires_grad)


def _arguments(config: Any, side: int, dtype: Any) -> dict[str, Any]:
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
            "text_embeds": torch.empty(1, pooled, dtype=dtype), "time_ids": torch.empty(1, 6, dtype=dtype)
        }  # fmt: skip
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

    known: dict[int, Any] = {p.untyped_storage()._cdata: None for p in network.parameters()}
    alive = {"now": 0, "peak": 0}

    def gone(key: int, size: int) -> None:
        alive["now"] -= size
        known.pop(key, None)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for value in tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    note(value.untyped_storage())
            return result

    def note(storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in known:
            known[key] = weakref.ref(storage, lambda _: gone(key, size))
            alive["now"] += size
            alive["peak"] = max(alive["peak"], alive["now"])

    with Watch():
        work()
    return alive["peak"]


def available_bytes(device: str) -> float:
    """Memory of the device that is free now."""
    import psutil
    import torch

    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def check(needed: Estimate, available: float, model: ModelSettings) -> str | None:
    """A warning where a run will hardly fit, ``None`` where it will.

    Raises:
        MissingError: not even one latent at a time fits.
    """
    if needed.total <= available:
        return None
    advice = []
    if not model.gradient_checkpointing:
        advice.append("--set model.gradient_checkpointing=true")
    if not model.cpu_offload:
        advice.append("--set model.cpu_offload=true (on a GPU)")
    if WIDTH[model.precision] == 4:
        advice.append("--set model.precision=bf16")
    fitting = needed.largest_micro_batch(available)
    head = f"this run needs about {gigabytes(needed.total)}, and {gigabytes(available)} are free here."
    if fitting < 1:
        raise MissingError(
            f"{head} Even one latent at a time needs {gigabytes(needed.least)}. "
            f"Smaller: {', '.join([*advice, '--set model.resolution=N', '--set sample.images_per_epoch=N'])}."
        )
    return f"{head} Use --micro-batch {fitting} or less (no number changes)" + (
        f", or {', '.join(advice)}." if advice else "."
    )


def gigabytes(size: float) -> str:
    """Bytes for a person, e.g. ``3.5 GB`` or ``24 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
