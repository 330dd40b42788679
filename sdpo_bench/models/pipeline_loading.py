"""Loading a pipeline from a folder: whole, of a family that the engine knows, its parts held against each other.

The libraries load a pipeline that is not whole without an error: what a text encoder's file lacks is filled with random
numbers, other in every process, and a tokenizer without its settings cuts no prompt.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError, SdpoBenchError, UsageError, says_out_of_memory
from sdpo_bench.models.families import Family
from sdpo_bench.models.pipeline_files import index_of, read_folder
from sdpo_bench.system.signals import preserve_stop


@preserve_stop()
def import_libraries() -> None:
    """Import what all pipelines and adapters share, which diffusers otherwise does in the middle of loading weights."""
    import_module("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    import_module("peft")


@preserve_stop()
def whole_pipeline(folder: Path, precision: str) -> Any:
    """The diffusers pipeline in a folder, on the CPU.

    The autoencoder is loaded in float32 whatever the precision: some overflow in half.

    Raises:
        UsageError: another family. MissingError: damaged files, or some that do not belong together.
    """
    import torch
    from diffusers import DiffusionPipeline

    from sdpo_bench.models.policy import DTYPES

    files = read_folder(folder)
    family = files.family(str(folder))
    family.check(files.configs, str(folder))
    dtypes = {"default": DTYPES[precision], "vae": torch.float32}
    given: dict[str, Any] = {"safety_checker": None} if family.encoders == ("text_encoder",) and not family.flow else {}
    given |= dict.fromkeys(left_out_parts(folder, family))
    with _pipeline_at_fault(folder):
        given |= _text_encoders(folder, family, DTYPES[precision])
        pipeline = DiffusionPipeline.from_pretrained(
            str(folder), dtype=dtypes if precision != "fp32" else torch.float32, local_files_only=True, **given
        )
        _check_parts(pipeline, family, str(folder))
        _check_whole(pipeline, family, folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def left_out_parts(folder: Path, family: Family) -> tuple[str, ...]:
    """Optional parts of the family that this pipeline lacks; stock diffusers must be given ``None`` for each."""
    index = index_of(folder)
    return tuple(part for part in family.optional if not any(index.get(part) or ()))


@contextmanager
def _pipeline_at_fault(folder: Path) -> Iterator[None]:
    """A block in which whatever goes wrong is the pipeline's: the libraries each raise errors of their own.

    Raises:
        MissingError: in their place.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SdpoBenchError) or says_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise MissingError(
            f"the pipeline '{folder}' cannot be loaded: {reason} If files are damaged, copy or fetch them again; "
            "for a hub model, delete its folder in the hub cache first."
        ) from error


def _check_parts(pipeline: Any, family: Family, location: str) -> None:
    parts = [family.denoiser, "vae", *family.encoders, *family.tokenizers]
    # A second encoder that the pipeline's class has and its files lack.
    parts += [part for part in pipeline.components if part.startswith(("text_encoder", "tokenizer"))]
    found = {part: getattr(pipeline, part, None) for part in parts if part not in family.optional}
    missing = [part for part, value in found.items() if value is None]
    if missing:
        raise UsageError(
            f"'{location}' holds a {type(pipeline).__name__} without {', '.join(missing)}; "
            f"a pipeline of {family.name} needs them."
        )


def _text_encoders(folder: Path, family: Family, dtype: Any) -> dict[str, Any]:
    """The text encoders that a pipeline's index names, by part; only their own library says what it found in the file.

    Args:
        dtype: torch dtype of their weights.

    Raises:
        MissingError: weights that the file lacks, or has in another shape.
    """
    import transformers

    encoders = {}
    for part in family.encoders:
        library, name = (index_of(folder).get(part) or ("", ""))[:2]
        if library == "transformers":
            network, report = getattr(transformers, name).from_pretrained(
                str(folder / part), dtype=dtype, local_files_only=True, output_loading_info=True
            )
            _refuse_missing(folder, part, [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
            encoders[part] = network
    return encoders


def load_tokenizers(folder: Path) -> dict[str, Any]:
    """The tokenizers that a pipeline's index names, by part, without its networks.

    Raises:
        UsageError: no pipeline folder. MissingError: damaged files, or a tokenizer that does not fit its encoder.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice is for those who load networks
    import transformers

    files = read_folder(folder)
    family, tokenizers = files.family(str(folder)), {}
    for part, encoder in zip(family.tokenizers, family.encoders):
        library, name = (index_of(folder).get(part) or ("", ""))[:2]
        if library != "transformers":
            continue
        with _pipeline_at_fault(folder):
            tokenizer = getattr(transformers, name).from_pretrained(str(folder / part), local_files_only=True)
            if part in family.self_cutting:
                _check_tokenizer(folder / part, tokenizer, files.configs.get(encoder, {}))
        tokenizers[part] = tokenizer
    return tokenizers


def _check_whole(pipeline: Any, family: Family, folder: Path) -> None:
    """Refuse networks without all their weights, and tokenizers that do not cut prompts for their encoders.

    Raises:
        MissingError: with the part and what is wrong with it.
    """
    for part in (family.denoiser, "vae"):
        network = getattr(pipeline, part)
        _refuse_missing(folder, part, [name for name, p in network.named_parameters() if p.is_meta])
    for part in (family.denoiser, "vae", *family.encoders):
        _refuse_not_finite(folder, part, getattr(pipeline, part, None))
    for part, encoder in zip(family.tokenizers, family.encoders):
        if part in family.self_cutting:
            _check_tokenizer(folder / part, getattr(pipeline, part), getattr(pipeline, encoder).config.to_dict())


def _refuse_missing(folder: Path, part: str, names: list[str]) -> None:
    if names:
        raise MissingError(
            f"the weights in '{folder / part}' lack {len(names)} of the network's tensors, e.g. '{min(names)}'. Save "
            "the pipeline again with save_pretrained, or fetch it again."
        )


def _refuse_not_finite(folder: Path, part: str, network: Any) -> None:
    """One such number among the base weights makes every picture black, which would read as a training that failed."""
    for name, values in network.named_parameters() if network is not None else ():
        if not bool(values.isfinite().all()):
            raise MissingError(
                f"the weights in '{folder / part}' hold NaN or infinity in '{name}'. Save the pipeline again, or fetch "
                "it again; weights that overflow in half precision want model.precision = bf16 or fp32."
            )


def _check_tokenizer(folder: Path, tokenizer: Any, encoder: Mapping[str, Any]) -> None:
    longest, positions = tokenizer.model_max_length, encoder.get("max_position_embeddings")
    if not isinstance(longest, int) or longest < 1 or (positions and longest > positions):
        raise MissingError(
            f"the tokenizer in '{folder}' cuts prompts at {longest} tokens, and its text encoder takes {positions}. "
            "Its tokenizer_config.json is missing or damaged (model_max_length)."
        )
