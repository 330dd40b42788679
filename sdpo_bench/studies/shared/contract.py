"""The contract of a study: a question about a method's assumptions, how it is asked, and what the numbers answer.

A study is one module with one class, found like methods and rewards (folder ``studies``, or the entry-point group
``sdpo_bench.studies``). It declares its design before anything runs: texts, and the trainings it compares as suites,
so that plan, resume, locks, failures and budgets are those of ``sweep``. Afterwards it turns what was measured into
tables, plots and a conclusion whose every sentence is chosen by a test. No torch here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sdpo_bench.errors import UsageError
from sdpo_bench.hashing import digest
from sdpo_bench.plugins.contract_check import TEXT, add_kind

if TYPE_CHECKING:
    from sdpo_bench.results.study_findings import Findings
    from sdpo_bench.settings import Runtime
    from sdpo_bench.studies.shared.trainings import Trainings
    from sdpo_bench.sweep.suite import Suite

SIZES = {"tiny": 0.02, "small": 0.25, "default": 1.0, "large": 4.0}
"""Named factors of a study's default budget; ``tiny`` shows that it runs, and nothing else."""
SEEDS = (0, 1, 2)
MORE_SEEDS = (0, 1, 2, 3, 4)
"""From ``large`` on."""


@dataclass(frozen=True)
class StudyRequest:
    """What the user asked of a study; empty means "the study's own choice"."""

    size: float = 1.0
    model: str = ""
    rewards: tuple[str, ...] = ()
    preset: str | None = None
    seeds: tuple[int, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every training, above those of the study."""

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """Training (or sampling) seeds."""
        return self.seeds or (MORE_SEEDS if self.size >= SIZES["large"] else SEEDS)

    def amount(self, default: float, *, least: int = 1, multiple: int = 1) -> int:
        """``default`` times the size, rounded to a multiple, at least ``least``."""
        return max(least, multiple * round(default * self.size / multiple))

    @property
    def size_name(self) -> str:
        """``small``, ``default`` or ``x0.1``."""
        return next((name for name, factor in SIZES.items() if factor == self.size), f"x{self.size:g}")


def parse_size(text: str) -> float:
    """A name of :data:`SIZES` or a positive factor.

    Raises:
        UsageError: neither.
    """
    try:
        factor = SIZES[text] if text in SIZES else float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise UsageError(f"--size: got '{text}', expected {', '.join(SIZES)} or a positive factor such as 0.5.")
    return factor


@dataclass(frozen=True)
class Design:
    """What a study will do, declared before it does it."""

    facts: tuple[tuple[str, str], ...]
    """Seeds, prompts, budget, what is compared."""
    statistics: tuple[str, ...]
    """Endpoint, interval, family of tests; rules by which the conclusion is chosen."""
    suites: tuple["Suite", ...] = ()
    denoiser_calls: int = 0
    """Denoiser calls of the study itself, besides its trainings."""


@dataclass(frozen=True)
class Bench:
    """What a study works with once its trainings have ended."""

    request: StudyRequest
    design: Design
    runtime: "Runtime"
    trainings: "Trainings"
    say: Callable[[str], None] = lambda text: None
    """Progress in words."""


class Study(ABC):
    """A question with an answer in numbers. The first line of the docstring is what ``list studies`` prints."""

    name: ClassVar[str]
    question: ClassVar[str]

    @abstractmethod
    def design(self, request: StudyRequest) -> Design:
        """What will be done for this request.

        Raises:
            UsageError: a request that the study cannot serve.
        """

    def follow_up(self, request: StudyRequest, trainings: "Trainings") -> Sequence["Suite"]:
        """Trainings that can only be planned when the others have ended, e.g. for as many seconds as they took."""
        return ()

    @abstractmethod
    def findings(self, bench: Bench) -> "Findings":
        """Tables, plots and conclusion."""


def variant_of(request: StudyRequest) -> str:
    """File name of a request's results."""
    asked = {
        "model": request.model,
        "rewards": request.rewards,
        "preset": request.preset,
        "seeds": request.seeds,
        "overrides": dict(request.overrides),
    }
    given = {key: value for key, value in asked.items() if value}
    return request.size_name + (f"-{digest(given, 6)}" if given else "")


def design_facts(design: Design, request: StudyRequest) -> tuple[tuple[str, str], ...]:
    """The design as declared, and what the user changed of it."""
    changed = [("size", f"{request.size_name} (factor {request.size:g})")]
    if request.overrides:
        changed.append(("set by the user", ", ".join(f"{key} = {value}" for key, value in request.overrides.items())))
    return (*design.facts, *changed)


add_kind("studies", Study, {"question": TEXT})
