"""Prompt sets of publications, which stay where their authors put them: ``sdpo-bench fetch`` gets a copy for the cache.

A file of a code repository is pinned by commit and SHA-256, a hub dataset is recorded with its commit.
"""

import hashlib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from sdpo_bench.errors import MissingError
from sdpo_bench.prompts.hub_prompts import PATIENCE, parse_hub
from sdpo_bench.prompts.table_files import SUFFIXES, read_column
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.signals import preserve_stop

FLOW_GRPO = "https://raw.githubusercontent.com/yifan123/flow_grpo/ac4c86e8cae021841f1fde853d340e0db67690dd/dataset"


@dataclass(frozen=True)
class PublishedSet:
    """A prompt set of a publication: ``location`` is ``hub:...`` or the address of one file."""

    name: str
    location: str
    source: str
    licence: str
    count: int
    """Prompts without repetitions."""
    sha256: str = ""
    column: str = ""

    @property
    def path(self) -> Path:
        """Where the copy of a file lies; the digest is in its name, so that another version is another file."""
        from huggingface_hub.constants import HF_HOME

        suffix = Path(self.location).suffix
        return Path(HF_HOME) / "sdpo-bench" / "prompts" / f"{self.name}-{self.sha256[:12]}{suffix}"

    @property
    def cached(self) -> bool:
        hub = parse_hub(self.location)
        return bool(hub.cached()) if hub else self.path.is_file()

    def prompts(self) -> list[str]:
        """The prompts, each once, in the publication's order.

        Raises:
            MissingError: not fetched yet, or a file that is not the published one.
        """
        if hub := parse_hub(self.location):
            return hub.prompts()
        if not self.path.is_file():
            raise MissingError(f"the prompt set '{self.name}' is not here. Type: sdpo-bench fetch {self.name}")
        self._check(self.path.read_bytes(), str(self.path))
        if self.path.suffix in SUFFIXES:
            return read_column(self.path, self.column, f"prompt set '{self.name}'")
        lines = self.path.read_text(encoding="utf-8").split("\n")
        return list(dict.fromkeys(line.strip() for line in lines if line.strip()))

    @preserve_stop()
    def fetch(self) -> Path:
        """Download what is not cached.

        Raises:
            MissingError: not reachable, or another file than the published one.
        """
        if hub := parse_hub(self.location):
            return hub.files()[0]
        if not self.path.is_file():
            try:
                with urllib.request.urlopen(self.location, timeout=PATIENCE) as answer:
                    content = answer.read()
            except (OSError, ValueError) as error:
                raise MissingError(
                    f"the prompt set '{self.name}' is not reachable at {self.location}: {error}"
                ) from error
            self._check(content, self.location)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, content)
        return self.path

    def _check(self, content: bytes, where: str) -> None:
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise MissingError(
                f"{where} is not the published file of '{self.name}' (its SHA-256 is another). Delete it if it is a "
                f"local copy, and type: sdpo-bench fetch {self.name}"
            )


_SETS = (
    PublishedSet(
        "drawbench", "hub:sayakpaul/drawbench:Prompts", "DrawBench (Imagen, arXiv 2205.11487)", "Apache-2.0", 200
    ),
    PublishedSet(
        "partiprompts",
        "https://raw.githubusercontent.com/google-research/parti/5a657978134374ce28973948331b319adef164bd/PartiPrompts.tsv",
        "PartiPrompts (arXiv 2206.10789)",
        "Apache-2.0",
        1632,
        "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
        "Prompt",
    ),
    PublishedSet(
        "pickscore-test",
        f"{FLOW_GRPO}/pickscore/test.txt",
        "test prompts of Pick-a-Pic (PickScore, arXiv 2305.01569), as in Flow-GRPO",
        "MIT (Flow-GRPO's repository)",
        2048,
        "d75c025fa451866e70f7e36243f7cdd93095523cb51f5f9651f2ce3236d20262",
    ),
    PublishedSet(
        "geneval",
        "https://raw.githubusercontent.com/djghosh13/geneval/af4902f24d3ca90ebbb446dd9891a59e0f82725f/prompts/generation_prompts.txt",
        "GenEval (arXiv 2310.11513)",
        "MIT",
        553,
        "55b6e3650e980c13daf30569eb666e000faf19bfc2b7b4cbe999fcdb7aa9d680",
    ),
    PublishedSet(
        "ocr-test",
        f"{FLOW_GRPO}/ocr/test.txt",
        "prompts with quoted text (Flow-GRPO, arXiv 2505.05470), for the reward ocr",
        "MIT",
        1018,
        "4dd8caf3ab6ade73bd376c7d14c6ca49b6eacfb1bd321e22c40714ae4a98d4dc",
    ),
)
PUBLISHED = {published.name: published for published in _SETS}
