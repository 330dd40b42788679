"""The policy: a text-to-image pipeline whose denoiser (a UNet or a transformer) carries one LoRA adapter.

The rest of the package needs these verbs: ``encode`` prompts, ``predict`` the model output of a batch of latents,
``decode`` latents to images, ``adapter`` and ``set_adapter`` for the LoRA weights. The reference model is the same
denoiser with the adapter off, so it costs no memory. Every denoiser call passes through ``predict`` and is reported to
``on_call``, which is how the ledger stays exact.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.models.adapter_file import AdapterFile
from sdpo_bench.models.conditioning import Conditioning, join_rows
from sdpo_bench.models.families import configs_of, family_of
from sdpo_bench.settings import GuidanceGradient

__all__ = ["Conditioning", "Policy"]

ADAPTER = "default"
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Policy:
    """A pipeline, its LoRA adapter, and the only door to the denoiser.

    Args:
        pipeline: a loaded pipeline of one of the families (``families``).
        guidance_scale: 1.0 means no classifier-free guidance (one denoiser evaluation a latent), more means two.
            A guidance-distilled denoiser takes the scale as an input and is evaluated once.
        precision: compute dtype of the frozen weights; LoRA weights and log-probabilities stay float32.
        resolution: side of the pictures in pixels; ``None`` is the model's own.
        text_tokens: tokens of a prompt where a family leaves their number free; ``None`` is the stock pipeline's.
        gradient_checkpointing: recompute the denoiser's activations in the backward pass instead of keeping them.
        channels_last: memory order of denoiser and autoencoder; the same numbers up to rounding.
        cpu_offload: text encoders and autoencoder wait in CPU memory and visit the device only while they work;
            trajectories wait there too.

    Raises:
        UsageError: a family that is not known, a resolution that its strides do not divide, or a number of text tokens
            where it is fixed.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        guidance_scale: float = 1.0,
        precision: Precision = "fp32",
        device: str = "cpu",
        resolution: int | None = None,
        text_tokens: int | None = None,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        cpu_offload: bool = False,
    ):
        self.pipeline = pipeline
        configs = configs_of(pipeline)
        self.family = family_of(configs, pipeline.name_or_path or type(pipeline).__name__)
        self.denoiser: Any = getattr(pipeline, self.family.denoiser)
        self.vae = pipeline.vae
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.guidance_scale = guidance_scale
        self.guidance_gradient: GuidanceGradient = "both"
        self.on_call: Callable[[int], None] | None = None
        self._cache: dict[str, Conditioning] = {}
        self._adapted: list[Any] = []
        self._lora: dict[str, nn.Parameter] = {}
        self._side = self.family.latent_side(configs, resolution)
        self.text_tokens = self.family.chosen_text_tokens(configs, text_tokens)
        self._stride = self.family.stride(configs)
        self._channels = self.family.channels(configs)
        self.image_tokens = self.family.image_tokens(configs, self._side)
        self._embeds_guidance = self.family.embeds_guidance(configs)
        self._offload = cpu_offload
        at_rest = "cpu" if cpu_offload else self.device
        for encoder in self._encoders:
            encoder.requires_grad_(False).eval()
            encoder.to(at_rest)  # without a dtype: in fp16 T5 keeps the weights that overflow in float32
        self.vae.requires_grad_(False).eval()
        self.vae.to(at_rest, torch.float32 if self.family.upcast_vae(configs) else self.dtype)
        self.denoiser.requires_grad_(False).eval()
        self.denoiser.to(self.device, self.dtype)
        if channels_last:
            if any(weight.ndim == 5 for weight in self.vae.parameters()):
                raise UsageError(
                    f"model.channels_last does not fit {self.family.name}'s video autoencoder. Leave it out."
                )
            for network in (self.denoiser, self.vae):
                network.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()

    @property
    def _encoders(self) -> list[Any]:
        parts = [getattr(self.pipeline, name) for name in self.family.encoders]
        return [part for part in parts if part is not None]

    @contextmanager
    def _at_work(self, *parts: nn.Module) -> Iterator[None]:
        """Parts that rest on the CPU are on the device inside this context."""
        if self._offload:
            for part in parts:
                part.to(self.device)
        try:
            yield
        finally:
            # A graph that somebody will differentiate needs the weights where they are.
            if self._offload and not torch.is_grad_enabled():
                for part in parts:
                    part.to("cpu")

    def compile(self, backend: str) -> None:
        """Compile the denoiser's forward and backward passes, adapter included, at their first use.

        Raises:
            UsageError: no such backend of ``torch.compile``.
        """
        from torch._dynamo import list_backends

        backends = list_backends(exclude_tags=())
        if backend not in backends:
            raise UsageError(f"unknown torch.compile backend '{backend}' in model.compile.{nearest(backend, backends)}")
        self.denoiser.compile(backend=backend)

    # -- adapter ---------------------------------------------------------------------------------------------

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """Add a fresh adapter: A ~ N(0, 1/rank), B = 0 (diffusers' "gaussian"), drawn from ``seed`` alone.

        Raises:
            UsageError: no module of the denoiser matches ``targets``.
        """
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")
        try:
            self.denoiser.add_adapter(config, adapter_name=ADAPTER)
        except ValueError as error:
            raise UsageError(
                f"LoRA targets {list(targets)} fit no module of this {self.family.network}. "
                f"Set model.lora_targets; {self.family.name}'s default is {', '.join(self.family.lora_targets)}."
            ) from error
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(self.lora_parameters().items()):
            parameter.data = parameter.data.float()
            if "lora_A" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator).div(rank).to(self.device)

    def lora_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name: LoRA matrices only, float32."""
        if not self._lora:  # held: methods with an old policy ask at each of their calls
            self._lora = {name: p for name, p in self.denoiser.named_parameters() if "lora_" in name}
        return dict(self._lora)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside this context the denoiser is the base model: adapter off, no gradients."""
        self._switch(False)
        try:
            with torch.no_grad():
                yield
        finally:
            self._switch(True)

    @contextmanager
    def using(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside this context the adapter has other weights (by parameter name, same shapes), and no gradients."""
        own = {name: parameter.data for name, parameter in self.lora_parameters().items()}
        self._place(weights)
        try:
            with torch.no_grad():
                yield
        finally:
            self._place(own)

    def _place(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.lora_parameters().items():
            parameter.data = weights[name]

    def _switch(self, on: bool) -> None:
        """As the denoiser's own ``enable_adapters``, which walks through every module and parameter each time."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        if not self._adapted:
            self._adapted = [m for m in self.denoiser.modules() if isinstance(m, BaseTunerLayer)]
        for layer in self._adapted:
            layer._disable_adapters = not on
        if any(layer.disable_adapters is on for layer in self._adapted[:1]):
            raise RuntimeError("this release of peft switches adapters otherwise: the base model would be the policy")

    def adapter(self) -> AdapterFile:
        """The adapter as it is now: float32 weights on the CPU, with rank, alpha and targets."""
        weights = {name.replace(f".{ADAPTER}.", "."): p.detach().cpu() for name, p in self.lora_parameters().items()}
        return AdapterFile(weights, self._lora_config(), self.family.denoiser)

    def _lora_config(self) -> dict[str, Any]:
        config = self.denoiser.peft_config[ADAPTER]
        return {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}

    def set_adapter(self, file: AdapterFile) -> None:
        """Put another adapter in the place of the present one.

        Rank, alpha and targets are the file's. The weights are float32 and bit-equal to the file's in every precision
        of the base model.
        """
        self._adapted, self._lora = [], {}
        if getattr(self.denoiser, "peft_config", None):
            self.denoiser.delete_adapters(ADAPTER)
        self.denoiser.load_lora_adapter(file.weights, prefix=None, adapter_name=ADAPTER, metadata=dict(file.config))
        for name, parameter in self.lora_parameters().items():
            # Again from the file: the library has rounded them to the type of the base weights.
            parameter.data = file.weights[name.replace(f".{ADAPTER}.", ".")].to(self.device)
            parameter.requires_grad_(True)

    def set_guidance(self, scale: float) -> None:
        """Change the guidance scale; encode the conditioning again if the unconditional branch comes or goes."""
        before = self.branches
        self.guidance_scale = scale
        if self.branches != before:
            self._cache.clear()

    @property
    def branches(self) -> int:
        """Denoiser evaluations of one latent: 2 with classifier-free guidance, else 1."""
        return 2 if self.guidance_scale > 1 and not self._embeds_guidance else 1

    # -- text, denoiser, pictures ----------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of each prompt, in order; every distinct prompt is encoded once per policy."""
        if not prompts:
            return Conditioning({})
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        if missing:
            size = self._side * self._stride
            with self._at_work(*self._encoders):
                for prompt in missing:
                    self._cache[prompt] = self.family.encode(
                        self.pipeline,
                        prompt,
                        device=self.device,
                        guided=self.branches > 1,
                        size=size,
                        text_tokens=self.text_tokens,
                    )
        return Conditioning.join([self._cache[prompt] for prompt in prompts])

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Model output ``[n, C, h, w]`` float32 for latents ``[n, C, h, w]`` at timesteps ``[n]``.

        The timesteps are the schedule's own: int64, or float32 ``1000 sigma`` of flow-matching models, whose output is
        the velocity ``eps - x0``. With guidance both branches are evaluated, and both are charged. Where
        ``guidance_gradient`` is ``conditional``, the gradient ignores that the unconditional output depends on the
        weights and on the latents. Both are rows of one batch all the same, as in Flow-GRPO's code (ac4c86e,
        ``compute_log_prob``), so values are equal to the bit and a backward pass still has the rows of both.
        """
        if conditioning.negative is None:
            return self._call(latents, timesteps, conditioning.positive)
        both = join_rows([conditioning.negative, conditioning.positive])
        output = self._call(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), both)
        unconditional, conditional = output.chunk(2)
        if self.guidance_gradient == "conditional":
            unconditional = unconditional.detach()
        return self.family.guided(unconditional, conditional, self.guidance_scale)

    def _call(self, latents: Tensor, timesteps: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        if self.on_call is not None:
            self.on_call(len(latents))
        latents, timesteps = latents.to(self.device, self.dtype), timesteps.to(self.device)
        with self._autocast():
            output = self.family.predict(self.denoiser, latents, timesteps, tensors, self.guidance_scale)
        return output.float()

    def _autocast(self) -> Any:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images ``[n, 3, H, W]`` float32 in [0, 1] of scaled latents ``[n, C, h, w]``; differentiable."""
        if not len(latents):
            side = latents.shape[-1] * self._stride
            return torch.empty(0, 3, side, side)
        with self._at_work(self.vae):
            images = self.family.decode(self.vae, latents.to(self.device, self.vae.dtype))
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @property
    def storage(self) -> torch.device:
        """Where trajectories wait for the updates: with ``cpu_offload`` not on the device."""
        return torch.device("cpu") if self._offload else self.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, h, w)`` of one latent."""
        return self._channels, self._side, self._side
