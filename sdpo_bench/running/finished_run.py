"""A finished run, opened again: its record as settings, and the policy, rewards and search that they describe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_bench.evaluation.inference_search import Candidates, recorded_search
from sdpo_bench.evaluation.reward_scale import calibrate
from sdpo_bench.models.base_model import load_policy, refuse_changed
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.running.source_check import refuse_other_weights
from sdpo_bench.runs.adapter import require_adapter
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.runs.saved_adapter import load_adapter
from sdpo_bench.scoring.make_scorers import make_scorers
from sdpo_bench.scoring.reward_expression import same_reward
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.scoring.weighted_sum import Basis
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import EvaluationSettings, ModelSettings, ScheduleSettings


@dataclass(frozen=True)
class FinishedRun:
    """What ``run.json`` says, checked.

    Attributes:
        record: content of ``run.json``.
        evaluation: the recorded evaluation with the changes that were asked for.
    """

    folder: RunFolder
    record: Mapping[str, Any]
    model: ModelSettings
    evaluation: EvaluationSettings

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's settings as plain data."""
        config: Mapping[str, Any] = self.record["config"]
        return config

    @property
    def reward(self) -> str:
        """Name of the trained reward."""
        return str(self.config["reward"]["name"])

    @property
    def searches(self) -> bool:
        """Whether its method searches at inference instead of training."""
        return "search" in self.record

    def load_policy(self, device: str) -> Policy:
        """The base model with a fresh adapter; ``load_adapter(policy, run.folder.lora)`` makes it the run's own.

        Raises:
            UsageError: its hub repository has other weights now.
        """
        policy = load_policy(self.model, device=device, lora_seed=seed_for(self.config["seed"], "lora"))
        refuse_other_weights(policy, self.folder)
        return policy

    def make_scorers(self, names: Sequence[str], device: str, timeout: float = 0) -> list[Scorer]:
        """Scorers of rewards by name, the trained one with the run's own settings; not loaded yet.

        What a search chooses by is always among them.
        """
        own = self.record.get("reward_execution", self.config["reward"])
        trained = (own["name"], own["settings"])
        rewards = [trained if same_reward(name, self.reward) else (name, {}) for name in names]
        if self.searches:
            rewards.append(trained)
        schedule: ScheduleSettings = validate(ScheduleSettings, self.config["schedule"], "schedule")
        basis = Basis(self.model, schedule, str(self.config["sample"]["prompts"]))
        return make_scorers(rewards, basis, device, self.evaluation.images_per_prompt, timeout)

    def search(self, scorers: Sequence[Scorer]) -> Candidates | None:
        """How its images are chosen among candidates, by one of the scorers; None for a run that trained."""
        if not self.searches:
            return None
        return recorded_search(self.config, next(s for s in scorers if same_reward(s.name, self.reward)))


def open_finished_run(folder: RunFolder, changes: Mapping[str, Any] | None = None) -> FinishedRun:
    """Open a run that has its adapter, or needs none.

    Args:
        changes: of its evaluation settings, e.g. ``{"steps": "1,4"}``.

    Raises:
        UsageError: no adapter yet, a damaged record, an invalid change, or a base model that has changed since.
    """
    require_adapter(folder)
    record = folder.record()
    config = record["config"]
    evaluation: EvaluationSettings = validate(EvaluationSettings, config["eval"] | dict(changes or {}), "eval")
    model: ModelSettings = validate(ModelSettings, config["model"], "model")
    refuse_changed(model, record)
    return FinishedRun(folder, record, model, evaluation)


def load_tuned(run: FinishedRun, device: str) -> tuple[Policy, Candidates | None]:
    """The run's model with its adapter and guidance, and how a searching method chooses its images."""
    policy = run.load_policy(device)
    load_adapter(policy, run.folder.lora)
    search = None
    if run.searches:
        scorers = run.make_scorers([], device)
        for scorer in scorers:
            scorer.load()
        # Under the training's guidance, by which a sum's statistics are named.
        calibrate(scorers, policy, run.folder.path.parent.parent, run.record.get("reward_reference", {}))
        search = run.search(scorers)
    policy.set_guidance(run.evaluation.guidance_scale)
    return policy, search
