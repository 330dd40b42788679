"""Prompts as the tokenizer reads them: a text encoder takes so many tokens, and the rest of a prompt is dropped.

Stock pipelines drop it without an error, and read a word that the tokenizer does not know as one token for all of them,
so a run may train and judge on other texts than it names. This module finds the prompts that are cut, the unknown words
and the prompts that are one and the same to the model, and words the warning.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sdpo_bench.models.base_model import local_folder
from sdpo_bench.models.families import Family
from sdpo_bench.models.pipeline_files import read_folder
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.settings import EvaluationSettings, ModelSettings, RunConfig
from sdpo_bench.system.console_text import clean

if TYPE_CHECKING:
    from sdpo_bench.models.policy import Policy

GUARD = "prompts"
"""Name of the warning in ``warnings.jsonl``."""
SHOWN = 5
"""Groups of equal prompts that a warning names; ``doctor --prompts`` names all."""
ENDS = 60
"""Characters of a long prompt that are shown, from its beginning and from its end."""


@dataclass(frozen=True)
class Reader:
    """A tokenizer, the most tokens that the model takes of it, and the text that it is given for a prompt."""

    tokenizer: Any
    limit: int
    text: Callable[[str], str] = str


@dataclass(frozen=True)
class Reading:
    """How a model reads prompts.

    Attributes:
        prompts: how many different ones there are.
        limit: tokens of a prompt that the model reads, start and end tokens included; the smallest of its tokenizers.
        cut: prompts of which a tokenizer drops the end.
        same: groups of prompts that become the same tokens.
        unknown: words that a tokenizer reads as its token for unknown ones.
    """

    prompts: int
    limit: int
    cut: tuple[str, ...]
    same: tuple[tuple[str, ...], ...]
    unknown: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """What to warn of, in one line; empty if there is nothing."""
        sentences = []
        if self.cut:
            sentences.append(f"{self.summary}, the first: {_quoted(self.cut[0])}")
        if self.unknown:
            sentences.append(f"words that the model does not know: {self.unknown_words}")
        if self.same:
            groups = "; ".join(" and ".join(map(_quoted, group)) for group in self.same[:SHOWN])
            more = len(self.same) - SHOWN
            rest = (
                f"; and {more} more group{'s' * (more > 1)} (sdpo-bench doctor --prompts FILE shows all)"
                if more > 0
                else ""
            )
            sentences.append(f"prompts that are the same to the model: {groups}{rest}")
        return "; ".join(sentences)

    def as_data(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self) | {"warning": self.warning or None}

    @property
    def unknown_words(self) -> str:
        """The first few unknown words, and how many more there are."""
        left = len(self.unknown) - SHOWN
        return ", ".join(map(_quoted, self.unknown[:SHOWN])) + (f" and {left} more" if left > 0 else "")

    @property
    def summary(self) -> str:
        """How many prompts are cut, and where."""
        are = "is" if len(self.cut) == 1 else "are"
        return (
            f"{len(self.cut)} of {self.prompts} prompt{'s' * (self.prompts != 1)} {are} cut to the {self.limit} tokens "
            "that the model reads (start and end tokens included)"
        )


def _quoted(text: str) -> str:
    text = clean(text)
    return f"'{text}'" if len(text) <= 2 * ENDS else f"'{text[:ENDS]} ... {text[-ENDS:]}'"


def read_prompts(readers: Sequence[Reader], prompts: Iterable[str]) -> Reading:
    """How a model with these readers (one or more) reads prompts; each different prompt counts once."""
    texts = list(dict.fromkeys(prompts))
    cut: set[str] = set()
    unknown: dict[str, None] = {}
    tokens: dict[str, tuple[Any, ...]] = dict.fromkeys(texts, ())
    for reader in readers:
        given = [reader.text(text) for text in texts]
        whole = reader.tokenizer(given, verbose=False).input_ids
        # As stock pipelines call it: padding counts too, since a pad token may be a word of the prompt.
        read = reader.tokenizer(given, padding="max_length", max_length=reader.limit, truncation=True).input_ids
        unknown |= dict.fromkeys(_unknown_words(reader.tokenizer, given))
        cut |= {text for text, ids in zip(texts, whole) if len(ids) > reader.limit}
        for text, ids in zip(texts, read):
            tokens[text] += tuple(ids)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for text in texts:
        groups.setdefault(tokens[text], []).append(text)
    return Reading(
        len(texts),
        min(reader.limit for reader in readers),
        tuple(text for text in texts if text in cut),
        tuple(tuple(group) for group in groups.values() if len(group) > 1),
        tuple(unknown),
    )


def _unknown_words(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Words that become the token for unknown ones; none for CLIP, which spells every word and names its end token."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id or not tokenizer.is_fast:  # a slow one knows no offsets
        return []
    words = []
    read = tokenizer(list(texts), verbose=False, return_offsets_mapping=True)
    for text, ids, offsets in zip(texts, read.input_ids, read.offset_mapping):
        words += [text[start:end] for token, (start, end) in zip(ids, offsets) if token == unknown and end > start]
    return words


def make_readers(family: Family, tokenizers: Mapping[str, Any], text_tokens: int) -> list[Reader]:
    """The readers of a model of that family, from its tokenizers by part.

    Args:
        text_tokens: that the run encodes where their number is free (``Family.chosen_text_tokens``).
    """
    lengths = {part: tokenizer.model_max_length for part, tokenizer in tokenizers.items()}
    limits = family.prompt_limits(lengths, text_tokens)
    return [
        Reader(tokenizers[part], limit, partial(family.as_read, tokenizers[part])) for part, limit in limits.items()
    ]


def read_by(policy: "Policy", prompts: Iterable[str]) -> Reading:
    """How a loaded model reads prompts."""
    found = {part: getattr(policy.pipeline, part, None) for part in policy.family.tokenizers}
    tokenizers = {part: tokenizer for part, tokenizer in found.items() if tokenizer is not None}
    return read_prompts(make_readers(policy.family, tokenizers, policy.text_tokens), prompts)


def read_from_files(model: ModelSettings, prompts: Iterable[str]) -> Reading | None:
    """How a model reads prompts, from its tokenizer files; ``None`` where these are not on this machine.

    Raises:
        UsageError: a local folder that is not a pipeline. MissingError: tokenizer files that are damaged.
    """
    from sdpo_bench.models.pipeline_loading import load_tokenizers

    folder = local_folder(model)
    tokenizers = load_tokenizers(folder) if folder else {}
    if not folder or not tokenizers:
        return None
    files = read_folder(folder)
    family = files.family(str(folder))
    number = family.chosen_text_tokens(files.configs, model.text_tokens)
    return read_prompts(make_readers(family, tokenizers, number), prompts)


def prompts_of_run(config: RunConfig) -> list[str]:
    """All prompts that a run trains on, chooses its checkpoint on or is judged on."""
    chosen = config.checkpoint.prompts if config.checkpoint else ""
    return [*load_prompts(config.sample.prompts), *(load_prompts(chosen) if chosen else ()), *judged(config.eval)]


def judged(settings: EvaluationSettings) -> list[str]:
    """The prompts of all splits that are evaluated."""
    names = [name for name in (settings.train, settings.validation, settings.unseen) if name]
    return [text for name in names for text in load_prompts(name)]
