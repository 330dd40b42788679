"""Numbers that somebody else has published, from TOML files with their source; a report can show its own beside them.

The repository's files are in ``results/paper`` (``sdpo_bench/paper`` in a wheel).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, MinLen
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, model_validator

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.system.json_toml import parse_toml

PAPER = "paper"
"""The name of the shipped files."""
BASE = "base"
"""The row of the model before training in ``[scores]``."""


class Published(BaseModel):
    """One figure or table: a score for each method and number of denoising steps, and where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    publication: Annotated[str, MinLen(1)]
    source: Annotated[str, MinLen(1)]
    digitised: bool
    """Read off a picture."""
    tolerance: Annotated[FiniteFloat, Ge(0)]
    """Error of one reading, in units of the reward; half of the last printed digit for numbers in print."""
    model: str
    reward: str
    steps: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]
    scores: Mapping[str, tuple[FiniteFloat, ...]]
    """By method, in the order of ``steps``; ``base`` is the model before training."""
    images: Annotated[int, Ge(1)] | None = None
    """Images that the methods were trained on, where several points of a learning curve are published."""
    agreement: tuple[Annotated[FiniteFloat, Ge(0)], ...] = ()
    """How far an own score may be off to count as reproduced, in the order of ``steps``; empty for no such claim."""
    split: str = "train"
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> "Published":
        if BASE not in self.scores or len(self.scores) < 2:
            raise ValueError(f"[scores] needs '{BASE}' and at least one method")
        if len(set(self.steps)) < len(self.steps):
            raise ValueError("a number of steps occurs twice")
        if self.agreement and len(self.agreement) != len(self.steps):
            raise ValueError(f"'agreement' has {len(self.agreement)} numbers for {len(self.steps)} numbers of steps")
        for method, row in self.scores.items():
            if len(row) != len(self.steps):
                raise ValueError(f"'{method}' has {len(row)} scores for {len(self.steps)} numbers of steps")
        return self

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(name for name in self.scores if name != BASE)


def paper_folder() -> Path:
    """Where the shipped files are: inside the package if it was installed from a wheel, in ``results`` otherwise.

    Raises:
        MissingError: an incomplete installation.
    """
    here = Path(__file__).parents[1]
    for folder in (here / PAPER, here.parent / "results" / PAPER):
        if any(folder.glob("*.toml")):
            return folder
    raise MissingError("the published numbers (results/paper/*.toml) are not installed. Install sdpo-bench again.")


def read_published(path: Path) -> Published:
    """One file.

    Raises:
        UsageError: it cannot be read, or something in it is missing or wrong.
    """
    try:
        # Some editors begin UTF-8 with a mark.
        return Published.model_validate(parse_toml(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise UsageError(
            f"'{path}' is no file of published numbers: {place}: {first['msg']}. results/paper has an example."
        ) from error
    except ValueError as error:
        raise UsageError(f"'{path}' is not TOML that can be used: {error}") from error


def paper() -> list[Published]:
    """All shipped files, sorted by name."""
    return [read_published(path) for path in sorted(paper_folder().glob("*.toml"))]
