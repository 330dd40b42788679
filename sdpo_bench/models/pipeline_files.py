"""What a pipeline is, read from its files alone: no weights are loaded, no network is asked, torch is not imported.

Configurations and the headers of safetensors files say how large a model is, which scheduler it was made for and what
is missing of it. For known models that are not on this machine the package ships their published architecture.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.models.families import Family, family_of
from sdpo_bench.system.json_toml import parse_json

NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
CONFIGS = (*NETWORKS, "scheduler")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
TEXTS = (".json", ".txt", ".model")


@dataclass(frozen=True)
class PipelineFiles:
    """A pipeline on disk or as published.

    Attributes:
        configs: configuration of each part of :data:`CONFIGS` that the pipeline has.
        parameters: number of parameters of each network; of a folder, all numbers of its weight files.
        buffers: numbers that a network stores besides its parameters (persistent buffers), of known models.
        measured: memory of one latent, of known models (see ``sdpo_bench.estimates.memory_estimate``).
        pipeline: class of the pipeline, where a folder names it.
        stored_bytes: bytes of a number in the published weights, by network; 4 where nothing else is said.
    """

    configs: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, int]
    measured: Mapping[str, Any] = field(default_factory=dict)
    pipeline: str = ""
    stored_bytes: Mapping[str, int] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, int]:
        """Numbers that each network stores and holds in memory: parameters and persistent buffers."""
        return {part: count + self.buffers.get(part, 0) for part, count in self.parameters.items()}

    @property
    def part_bytes(self) -> dict[str, int]:
        """Size of the published weights of each network."""
        return {part: number * self.stored_bytes.get(part, 4) for part, number in self.numbers.items()}

    @property
    def download_bytes(self) -> int:
        """Approximate size of the published weights."""
        return sum(self.part_bytes.values())

    def family(self, location: str) -> Family:
        """The family of the pipeline; ``location`` names it in messages.

        Raises:
            UsageError: one that is not supported.
        """
        return family_of(self.configs, location, self.pipeline)


def published(name: str) -> PipelineFiles | None:
    """The architecture of a known model, as its authors published it; ``None`` for one the package does not know."""
    path = Path(__file__).parent.parent / "assets" / "architectures" / f"{name}.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    return PipelineFiles(
        data["configs"],
        data["parameters"],
        data.get("measured", {}),
        stored_bytes=data.get("stored_bytes", {}),
        buffers=data.get("buffers", {}),
    )


def read_folder(folder: Path) -> PipelineFiles:
    """A pipeline folder's configurations and sizes.

    Raises:
        UsageError: it is not a pipeline folder. MissingError: a part is missing or damaged.
    """
    missing = missing_parts(folder)
    if missing:
        raise MissingError(f"the pipeline folder '{folder}' is not whole: {'; '.join(missing)}.")
    configs = {part: _config(folder / part) for part in CONFIGS if (folder / part).is_dir()}
    _refuse_empty(folder)
    _check_scheduler(folder, configs.get("scheduler", {}))
    parameters = {part: _count(folder / part) for part in NETWORKS if (folder / part).is_dir()}
    return PipelineFiles(configs, parameters, pipeline=str(index_of(folder).get("_class_name", "")))


def missing_parts(folder: Path) -> list[str]:
    """What a pipeline folder lacks of the parts that its ``model_index.json`` names, in words.

    Raises:
        UsageError: it has no ``model_index.json``. MissingError: that file is damaged.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise UsageError(
            f"'{folder}' is not a diffusers pipeline folder: it has no model_index.json. "
            "Save one with pipeline.save_pretrained(FOLDER)."
        )
    index = index_of(folder)
    named = [part for part in CONFIGS if isinstance(index.get(part), list) and any(index[part][:1])]
    problems = []
    for part in named:
        if _config_file(folder / part) is None:
            problems.append(f"{part} has no configuration file")
        elif part in NETWORKS and not _weight_files(folder / part):
            problems.append(f"{part} has no weights{_other_variants(folder / part)}")
    return problems


def _other_variants(folder: Path) -> str:
    """Weights that are there under a variant's name, which nothing here asks for."""
    names = [path.name for ending in ("safetensors", "bin") for path in sorted(folder.glob(f"*.*.{ending}"))]
    return f" but those of a variant, '{names[0]}' (save the pipeline without variant=)" if names else ""


def index_of(folder: Path) -> dict[str, Any]:
    """Content of ``model_index.json``. Raises MissingError: it is damaged."""
    return _json(folder / "model_index.json")


def _refuse_empty(folder: Path) -> None:
    """A copy that broke off leaves files of no bytes; a tokenizer without its merges spells every word in letters."""
    empty = [path for path in _loaded_files(folder) if not path.stat().st_size]
    if empty:
        raise MissingError(f"'{empty[0]}' is empty. Copy or fetch the pipeline again.")


def _check_scheduler(folder: Path, scheduler: Mapping[str, Any]) -> None:
    """A file without content would be the library's own noise levels, which no such model was trained with."""
    if not scheduler.get("_class_name"):
        raise MissingError(
            f"'{folder / 'scheduler'}' does not name its scheduler (_class_name). Save the pipeline again with "
            "save_pretrained, or fetch it again."
        )


def _config_file(folder: Path) -> Path | None:
    return next((f for n in ("config.json", "scheduler_config.json") if (f := folder / n).is_file()), None)


def _config(folder: Path) -> dict[str, Any]:
    path = _config_file(folder)
    return _json(path) if path else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingError(f"'{path}' is damaged or unreadable: {error}.") from error
    if not isinstance(data, dict):
        raise MissingError(f"'{path}' is damaged: an object was expected.")
    return data


def _weight_files(folder: Path) -> list[Path]:
    """The default variant's weights (``model.fp16.safetensors`` is another variant), safetensors before .bin."""
    for ending in (".safetensors", ".bin"):
        default = [f for f in sorted(folder.glob(f"*{ending}")) if "." not in f.name.removesuffix(ending)]
        weight_files = [f for f in default if f.is_file()]
        if weight_files:
            return weight_files
    return []


def content_digest(folder: Path) -> str:
    """Hash of what makes a pipeline's pictures: its configurations, vocabularies and default weights.

    Where the folder is, and what is never loaded of it, is no part of the hash.

    Raises:
        MissingError: a file that cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in _loaded_files(folder):
        try:
            status = path.stat()
            content = _file_digest(str(path), status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise MissingError(f"'{path}' cannot be read: {error.strerror}.") from error
        digest.update(f"{path.relative_to(folder).as_posix()} {status.st_size} {content}\n".encode())
    return digest.hexdigest()


def _loaded_files(folder: Path) -> list[Path]:
    files = [folder / "model_index.json"]
    for part in (*CONFIGS, *TOKENIZERS):
        files += [path for path in sorted((folder / part).glob("*")) if path.suffix in TEXTS]
        files += _weight_files(folder / part)
    return [path for path in files if path.is_file()]


@cache
def _file_digest(path: str, size: int, changed: int) -> str:
    """Hash of a file; gigabytes take seconds, and a process asks often."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def _count(folder: Path) -> int:
    """Parameters, from safetensors headers; from the file size, taken as float32, where there are only .bin files."""
    files = _weight_files(folder)
    return sum(_header_count(f) if f.suffix == ".safetensors" else f.stat().st_size // 4 for f in files)


def _header_count(path: Path) -> int:
    """Parameters of a safetensors file.

    Raises:
        MissingError: the header is damaged or the file is shorter than it says.
    """
    try:
        with open(path, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            entries = {k: v for k, v in parse_json(stream.read(length)).items() if k != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if path.stat().st_size < 8 + length + end:
            raise ValueError(f"it ends {8 + length + end - path.stat().st_size:,} bytes too early")
        # Older files also hold the text encoder's position numbers, which are no parameters.
        return sum(prod(entry["shape"]) for name, entry in entries.items() if not name.endswith("position_ids"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise MissingError(
            f"the weights '{path}' are damaged: {error}. Fetch or copy them again; for a hub model, delete its folder "
            "in the hub cache first."
        ) from error
