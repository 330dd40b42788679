"""The loaded parts of a pipeline, held against each other and against their files.

The libraries load a pipeline that is not whole without an error: what a text encoder's file lacks is filled with random
numbers, other in every process, and a tokenizer without its settings cuts no prompt.
"""

from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError
from sdpo_bench.pipeline_files import index_of

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def load_text_encoders(folder: Path, dtype: Any) -> dict[str, Any]:
    """The text encoders that a pipeline's index names, by part; only their own library says what it found in the file.

    Args:
        dtype: torch dtype of their weights.

    Raises:
        MissingError: weights that the file lacks, or has in another shape.
    """
    import transformers

    found = {}
    for part in TEXT_ENCODERS:
        library, name = (index_of(folder).get(part) or ("", ""))[:2]
        if library == "transformers":
            network, report = getattr(transformers, name).from_pretrained(
                str(folder / part), dtype=dtype, local_files_only=True, output_loading_info=True
            )
            _refuse_lacking(folder, part, [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
            found[part] = network
    return found


def check_whole(pipeline: Any, folder: Path) -> None:
    """Refuse networks without all their weights, and tokenizers that do not fit their encoders.

    Raises:
        MissingError: with the part and what is wrong with it.
    """
    for part in ("unet", "vae"):
        network = getattr(pipeline, part)
        _refuse_lacking(folder, part, [name for name, p in network.named_parameters() if p.is_meta])
    for suffix in ("", "_2"):
        tokenizer = getattr(pipeline, f"tokenizer{suffix}", None)
        encoder = getattr(pipeline, f"text_encoder{suffix}", None)
        if tokenizer is not None and encoder is not None:
            _check_tokenizer(folder / f"tokenizer{suffix}", tokenizer, encoder.config)


def _refuse_lacking(folder: Path, part: str, names: list[str]) -> None:
    if names:
        raise MissingError(
            f"the weights in '{folder / part}' lack {len(names)} of the network's tensors, e.g. '{min(names)}'. Save "
            "the pipeline again with save_pretrained, or fetch it again."
        )


def _check_tokenizer(folder: Path, tokenizer: Any, encoder: Any) -> None:
    longest, positions = tokenizer.model_max_length, getattr(encoder, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1 or (positions and longest > positions):
        raise MissingError(
            f"the tokenizer in '{folder}' cuts prompts at {longest} tokens, and its text encoder takes {positions}. "
            "Its tokenizer_config.json is missing or damaged (model_max_length)."
        )
    words, known = len(tokenizer), getattr(encoder, "vocab_size", None)
    if known and words > known:
        raise MissingError(
            f"the tokenizer in '{folder}' has {words} tokens and its text encoder knows {known}: they do not belong "
            "together. Copy or fetch the pipeline again."
        )
