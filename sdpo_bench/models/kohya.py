"""An adapter under kohya's names, as ComfyUI and AUTOMATIC1111 read those of a UNet."""

from sdpo_bench.errors import UsageError
from sdpo_bench.models.adapter_file import AdapterFile

MATRICES = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}


def kohya_bytes(adapter: AdapterFile) -> bytes:
    """Content of a safetensors file with ``lora_unet_MODULE.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``.

    Dots of a module's name become underscores. The matrices are the adapter's own, bit for bit; ``alpha`` is a scalar a
    module, and loaders scale by ``alpha / rank``.

    Raises:
        UsageError: an adapter of a transformer, for which there is no one form of these names.
    """
    import torch
    from safetensors.torch import save

    if adapter.part != "unet":
        raise UsageError(
            "kohya's names are those of UNet models, and this adapter is of a transformer. Leave out --format kohya: "
            "diffusers' form is the one for transformers."
        )
    alpha = torch.tensor(float(adapter.config["lora_alpha"]))
    tensors = {}
    for name, matrix in adapter.weights.items():
        ending = next(ending for ending in MATRICES if name.endswith(ending))
        module = "lora_unet_" + name.removesuffix(ending).replace(".", "_")
        tensors[module + MATRICES[ending]] = matrix.contiguous()
        tensors[f"{module}.alpha"] = alpha.clone()
    return save(tensors)
