"""Whether plugins and weights are still those that the numbers of a folder came from, before more are added.

A version is a promise that scores are the same, and nobody checks it for a plugin from outside: where its source has
changed, adding to what is there is refused. Built-in plugins change with this package, whose tests hold their numbers
to the version: there a word is enough. What is complete is shown in any case.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.evaluation.score_rows import read_rows
from sdpo_bench.models.hub import resolved_commit
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.registry import BUILT_IN, Plugin, find
from sdpo_bench.runs.input_digests import has_numbers, recorded_digests, reward_key, reward_source
from sdpo_bench.runs.provenance import reward_hash, source_hash
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.reward_expression import choose
from sdpo_bench.scoring.scorer import CompositeScorer, Scorer
from sdpo_bench.settings import EvaluationSettings


@dataclass(frozen=True)
class Changed:
    """A plugin with another source than the numbers of a folder came from."""

    what: str
    """For example ``reward 'redness'``."""
    version: str
    """Empty for methods, which have none."""
    plugins: tuple[Plugin, ...]
    """Several for the parts of a sum."""
    folder: str

    @property
    def third_party(self) -> bool:
        return any(plugin.owner != BUILT_IN for plugin in self.plugins)

    @property
    def text(self) -> str:
        owners = ", ".join(sorted({plugin.owner for plugin in self.plugins}))
        same = f", and its version is still {self.version}" if self.version else ""
        return f"the source of {self.what} ({owners}) has changed since the numbers in '{self.folder}' were made{same}"


def refuse_changed_plugins(
    run: RunFolder,
    base: RunFolder,
    settings: EvaluationSettings,
    scorers: Sequence[Scorer],
    *,
    trains: bool,
    warn: Callable[[str], None],
) -> None:
    """Compare sources for whatever is about to be added to a run and to its base model's scores.

    Args:
        trains: whether training begins or goes on.
        warn: told of built-in plugins.

    Raises:
        UsageError: a third party's plugin has changed.
    """
    absent = [*ev.missing_scorers(run, settings, scorers), *ev.missing_scorers(base, settings, scorers)]
    wanted = [scorer for scorer in scorers if scorer in absent]
    found = [*_of_run(run, wanted, trains), *_of_rows(run, wanted), *_of_rows(base, wanted)]
    for one in {change.what: change for change in reversed(found)}.values():
        if one.third_party:
            version = "give the changed one a version of its own, " if one.version else ""
            raise UsageError(
                f"{one.text}: what is added now would not be comparable. Put the file back, {version}or start again "
                "with another --out FOLDER."
            )
        warn(f"{one.text}; its numbers should be the same")


def refuse_other_weights(policy: Policy, folder: RunFolder) -> None:
    """A hub repository can get other weights under the same name; pipeline folders have a digest in the run's id.

    Args:
        folder: of a run or of a base model, whose numbers must come from the policy's base model.

    Raises:
        UsageError: they come from another commit.
    """
    now = resolved_commit(policy.pipeline.name_or_path)
    if now is None or not (folder.path / "run.json").exists() or not has_numbers(folder):
        return
    before = folder.record().get("model_commit")
    if before and before != now:
        raise UsageError(
            f"the numbers in '{folder.run_id}' come from commit {before} of the model, and this machine has commit "
            f"{now}: their scores cannot be compared. To use the former: --set model.revision={before}. To use the "
            "latter: the same command with another --out FOLDER."
        )


def _of_run(run: RunFolder, wanted: Sequence[Scorer], trains: bool) -> Iterator[Changed]:
    """Method and reward of a training that has begun, as far as they go into what is added."""
    if not (run.path / "run.json").exists() or not has_numbers(run):
        return
    record = run.record()
    config, hashes = record["config"], record.get("plugin_sha256", {})
    method = config["method"]["name"]
    if (trains or ("search" in record and wanted)) and _differs(hashes, "method", source_hash("methods", method)):
        yield Changed(f"method '{method}'", "", (find("methods", method),), run.run_id)
    reward = record.get("reward_execution", config["reward"])["name"]
    scored = record["reward_version"] in [reward_key(scorer) for scorer in wanted]
    if (trains or scored) and _differs(hashes, "reward", reward_hash(reward)):
        name, _, version = record["reward_version"].partition("/")
        yield Changed(f"reward '{name}'", version, tuple(plugin for plugin, _ in choose(reward).parts), run.run_id)


def _differs(hashes: Mapping[str, Any], kind: str, now: str | None) -> bool:
    return bool(hashes.get(kind) and now) and hashes[kind] != now


def _of_rows(folder: RunFolder, wanted: Sequence[Scorer]) -> Iterator[Changed]:
    """Rewards whose rows in a folder came from another source than that of rows which are about to join them."""
    if not folder.evaluation.exists():
        return
    known, rows = recorded_digests(folder, "rewards"), read_rows(folder)
    scored = set(zip(rows.reward, rows.version))
    for scorer in [part for one in wanted for part in (one.parts if isinstance(one, CompositeScorer) else [one])]:
        before, now, version = known.get(reward_key(scorer)), reward_source(scorer), scorer.reward.full_version
        if before and now and before != now and (scorer.name, version) in scored:
            yield Changed(
                f"reward '{scorer.name}'",
                version,
                tuple(plugin for plugin, _ in choose(scorer.name).parts),
                folder.run_id,
            )
