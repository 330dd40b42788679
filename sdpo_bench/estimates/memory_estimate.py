"""How much memory a run will need, before anything is loaded: exact sizes where they are known, a measured rule else.

Weights, adapter and optimiser state follow from parameter counts; stored trajectories from the settings. Activations of
one latent are traced (``activations``); a call costs as many times that as it has latents, which the
micro-batch and the settings limit. Known models carry that measurement (``tools.measure_architectures``), which grows
with the number of latent elements; networks below ``MEASURED_FROM`` parameters are too small to be worth it. Kernels'
workspaces come on top (``RESERVE``); reward models are not included.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdpo_bench.api import Method
from sdpo_bench.config.resolve import build_method
from sdpo_bench.errors import MissingError
from sdpo_bench.estimates.activations import WIDTH, make_task, trace, weight_bytes
from sdpo_bench.estimates.time_estimate import trained_steps
from sdpo_bench.evaluation.evaluate import splits
from sdpo_bench.hashing import canonical_json
from sdpo_bench.models.base_model import pipeline_files
from sdpo_bench.models.pipeline_files import PipelineFiles, published
from sdpo_bench.plugins.registry import find
from sdpo_bench.rollout.group_cost import completed_states
from sdpo_bench.settings import ModelSettings, RunConfig
from sdpo_bench.system.console_text import gigabytes
from sdpo_bench.training.shared_calls import CALL_ELEMENTS

RESERVE = 0.1  # of the estimate: kernels' workspaces and fragmentation
FRAMEWORK = 0.6e9  # the interpreter with its libraries, or a device context
MEASURED_FROM = 5_000_000  # parameters
ADAPTER_BYTES = 16  # a float32 weight, its gradient and two AdamW moments
DECODER_GRAPH = 7.41  # decoder activations kept for a gradient, over the peak of decoding alone (AutoencoderKL, traced)
FOLLOWER_BYTES = 4  # a float32 weight of the policy that samples, or of the moving average


@dataclass(frozen=True)
class Estimate:
    """Bytes a run needs on its device.

    Attributes:
        parameters: of each network.
        fixed: bytes by purpose, whatever the micro-batch.
        per_latent: bytes of one latent in a training step and in sampling, and of one picture in decoding.
        micro_batch: most latents in one call.
        rows: latents that the settings give such a call to do, by purpose; it has no more.
        members: trajectories of a prompt group, which a training step never takes apart.
    """

    parameters: Mapping[str, int]
    fixed: Mapping[str, float]
    per_latent: Mapping[str, float]
    micro_batch: int
    rows: Mapping[str, int] = field(default_factory=dict)
    members: int = 1
    host: Mapping[str, float] = field(default_factory=dict)

    @property
    def fixed_bytes(self) -> float:
        return sum(self.fixed.values())

    @property
    def total(self) -> float:
        """Bytes at the peak: what is fixed, and the largest call."""
        return self.fixed_bytes + max(self.calls.values(), default=0.0)

    @property
    def calls(self) -> dict[str, float]:
        """Bytes of the largest call by purpose."""
        return {name: self.in_a_call(name) * size for name, size in self.per_latent.items()}

    def in_a_call(self, name: str) -> int:
        """Most latents in one call of this purpose."""
        return min(max(self.micro_batch, self._at_least(name)), self.rows[name])

    def _at_least(self, name: str) -> int:
        return self.members if name == "training step" else 1

    @property
    def least(self) -> float:
        """Bytes at the peak with the smallest micro-batch."""
        return self.fixed_bytes + max((self._at_least(k) * size for k, size in self.per_latent.items()), default=0.0)

    def largest_micro_batch(self, available: float) -> int:
        """Most latents in one call that fit into ``available`` bytes, 0 if none do."""
        left = available - self.fixed_bytes
        if self.least > available:
            return 0
        fitting = [int(left // size) for name, size in self.per_latent.items() if self.rows[name] * size > left]
        return min(fitting, default=self.micro_batch)

    def as_data(self) -> dict[str, Any]:
        return {
            "parameters": dict(self.parameters),
            "fixed_bytes": dict(self.fixed),
            "micro_batch": self.micro_batch,
            "bytes_per_latent": dict(self.per_latent),
            "latents_in_a_call": {name: self.in_a_call(name) for name in self.per_latent},
            "peak_bytes": self.total,
            "host_bytes": dict(self.host),
        }


def estimate(config: RunConfig, micro_batch: int, device: str, processes: int = 1) -> Estimate | None:
    """Memory of each process of a run; ``None`` for a hub model of unknown architecture that is not here yet.

    Raises:
        UsageError, MissingError: a local folder that is not a pipeline, not whole, or damaged.
    """
    files = pipeline_files(config.model)
    if files is None:
        return None
    family = files.family(config.model.name)
    side = family.latent_side(files.configs, config.model.resolution)
    kind = device.partition(":")[0]
    resting, working = _weights(files, config.model)
    method = build_method(config, find("methods", config.method.name).load())
    elements = family.channels(files.configs) * side**2
    images = -(-config.sample.images_per_epoch // processes)
    trajectories = 4 * images * _stored_latents(config, method) * elements
    if method.granularity == "sample" and method.sample_features == "pixels" and method.needs_reference:
        trajectories += 4 * images * 3 * (side * family.stride(files.configs)) ** 2  # of the base model
    offloaded = resting > 0 and kind != "cpu"
    fixed = {
        "weights": working + (0.0 if offloaded else resting),
        "trajectories of an epoch": 0.0 if offloaded else float(trajectories),
        "framework": FRAMEWORK,
    }
    per_latent: dict[str, float] = {}
    if sum(files.parameters.values()) >= MEASURED_FROM:
        measured = _measured(files, config.model, side)
        guided = config.model.guidance_scale > 1 and not family.embeds_guidance(files.configs)
        followers = method.keeps_old + (config.ema is not None)
        fixed["adapter and optimiser"] = measured["adapter"] * (ADAPTER_BYTES + followers * FOLLOWER_BYTES)
        branches = 2 if guided else 1
        per_latent = {
            "training step": (
                measured["training"] * _graphs(method, config) * (branches if method.guided_loss else 1)
                + (measured["decoding"] * DECODER_GRAPH if _differentiates_decoder(method) else 0)
            )
            * (1 + RESERVE),
            "sampling": measured["sampling"] * branches * (1 + RESERVE),
            "decoding": measured["decoding"] * (1 + RESERVE),
        }
    host = {"in CPU memory (offloaded)": resting + trajectories} if offloaded else {}
    rows = _rows(config, method, images, processes, elements)
    return Estimate(files.parameters, fixed, per_latent, micro_batch, rows, method.members, host)


def _stored_latents(config: RunConfig, method: Method) -> int:
    """Latents of one image that an epoch holds at once, at most."""
    steps = config.schedule.steps
    kept = 2 * steps + 1  # T + 1 states and T predicted originals
    sampled = kept + steps  # with the noise of the steps
    drawing = [i for i, draws in enumerate(trained_steps(config.schedule, "official")) if draws]
    completed = 0 if method.signal in ("gradient", "none") else 2 * len(completed_states(method, steps, drawing))
    base = sampled if method.granularity == "sample" and method.needs_reference else 0
    return max(sampled, kept + completed, kept + base)  # completions are held twice while they are stacked


def _graphs(method: Method, config: RunConfig) -> int:
    """Denoising steps whose graphs a training step holds: all of a gradient through the sampler, else one."""
    through = method.signal == "gradient" or method.granularity == "sample"
    return method.backprop(config.schedule.steps).depth if through else 1


def _differentiates_decoder(method: Method) -> bool:
    """Whether a training step keeps the graph of the decoder: a reward's gradient, or a loss on pixels or features."""
    looks = method.granularity == "sample" and method.sample_features != "latent"
    return method.signal == "gradient" or looks


def _one_part_a_call(method: Method) -> bool:
    """Whether each minibatch makes its own denoiser calls (``shared_calls.calls``)."""
    return method.signal == "gradient" or method.granularity == "sample"


def _rows(config: RunConfig, method: Method, images: int, processes: int, elements: int) -> dict[str, int]:
    """Latents of the largest call of each purpose, were the micro-batch unlimited."""
    update, members = config.update, method.members
    minibatch = members * -(-update.minibatch // processes)
    whole = update.order == "accumulated" or method.granularity in ("trajectory", "sample")
    optimiser_step = min(minibatch * update.accumulation, images) * (config.schedule.steps if whole else 1)
    filled = CALL_ELEMENTS // (elements * members) * members if not _one_part_a_call(method) else 0
    judged = max((len(texts) for texts in splits(config.eval).values()), default=0) * config.eval.images_per_prompt
    pictures = max(images, -(-judged // processes))
    training = max(minibatch, min(optimiser_step, filled))
    return {"training step": training, "sampling": pictures, "decoding": pictures}


def _measured(files: PipelineFiles, model: ModelSettings, side: int) -> dict[str, float]:
    """Adapter parameters, and bytes of a training step, sampling and decoding for one latent: known, or traced now."""
    shipped, family = published(model.name), files.family(model.name)
    if shipped is None or not shipped.measured or model.lora_targets != family.lora_targets:
        return dict(trace(canonical_json(make_task(files, model, side))))
    sizes = shipped.measured["fp32" if WIDTH[model.precision] == 4 else "half"]
    native = family.native_side(shipped.configs)
    scale = family.activation_units(shipped.configs, side) / family.activation_units(shipped.configs, native)
    training = sizes["checkpointed" if model.gradient_checkpointing else "training"]
    return {
        "adapter": shipped.measured["adapter_per_rank"] * model.lora_rank,
        "training": training * scale,
        "sampling": sizes["sampling"] * scale,
        "decoding": sizes["decoding"] * (side / native) ** 2,
    }


def _weights(files: PipelineFiles, model: ModelSettings) -> tuple[float, float]:
    """Bytes of weights that rest on the CPU and that work on the device (with the largest visitor of the resting)."""
    family, sizes = files.family(model.name), weight_bytes(files, model.name, model.precision)
    if not model.cpu_offload:
        return 0.0, float(sum(sizes.values()))
    encoders = sum(v for k, v in sizes.items() if k.startswith("text_encoder"))
    return float(encoders + sizes["vae"]), float(sizes[family.denoiser] + max(encoders, sizes["vae"]))


def available_bytes(device: str) -> float:
    """Memory of the device that is free now."""
    import psutil
    import torch

    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def check(needed: Estimate, available: float, model: ModelSettings, where: str = "are free here") -> str | None:
    """A warning where a run will hardly fit, ``None`` where it will.

    Args:
        where: end of the sentence about the available memory.

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
    head = f"this run needs about {gigabytes(needed.total)}, and {gigabytes(available)} {where}."
    if fitting < 1:
        raise MissingError(
            f"{head} Even with --micro-batch 1 it needs {gigabytes(needed.least)}. "
            f"Smaller: {', '.join([*advice, '--set model.resolution=N', '--set sample.images_per_epoch=N'])}."
        )
    return f"{head} Use --micro-batch {fitting} or less (no number changes)" + (
        f", or {', '.join(advice)}." if advice else "."
    )
