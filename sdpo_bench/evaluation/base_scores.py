"""The base model's own scores: computed once for each model and sampler, beside the runs that are compared with it."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.hashing import canonical, digest
from sdpo_bench.models.base_model import model_digest
from sdpo_bench.models.hub import resolved_commit
from sdpo_bench.models.policy import Policy
from sdpo_bench.runs import provenance
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.settings import EvaluationSettings, ModelSettings, Runtime
from sdpo_bench.system.distributed import ALONE, Processes
from sdpo_bench.system.progress import Watcher

if TYPE_CHECKING:
    import pandas as pd


def base_folder(model: ModelSettings, settings: EvaluationSettings, runtime: Runtime) -> RunFolder:
    """Where the base model's scores live; shared by all runs with the same model and evaluation sampler."""
    identity = {"model": model.name, "sampler": sampler_id(settings), **_base_facts(model)}
    slug = "".join(c if c.isalnum() else "_" for c in model.name)[-40:]
    return RunFolder(runtime.out / "runs" / f"base-{slug}-{digest(identity)}")


def _base_facts(model: ModelSettings) -> dict[str, Any]:
    """What changes the base model's pictures besides its name and the sampler."""
    facts = {"revision": model.revision, "precision": model.precision}
    digest_of_files = model_digest(model.name) or None
    optional = {"resolution": model.resolution, "text_tokens": model.text_tokens, "digest": digest_of_files}
    return facts | {key: value for key, value in optional.items() if value is not None}


def evaluate_base(
    policy: Policy,
    model: ModelSettings,
    settings: EvaluationSettings,
    scorers: list[Scorer],
    runtime: Runtime,
    watcher: Watcher,
    *,
    device: str,
    processes: Processes = ALONE,
) -> "pd.DataFrame":
    """Rows of the base model (adapter off), computed once for each model and sampler."""
    run = base_folder(model, settings, runtime)
    commit = resolved_commit(policy.pipeline.name_or_path)
    record = {
        "kind": "base",
        "run": run.run_id,
        "config": canonical({"model": {"name": model.name, **_base_facts(model)}}),
        "sampler": sampler_id(settings),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(device),
        **({"model_commit": commit} if commit else {}),
    }
    if processes.is_main:
        run.create(record)
    adapter = policy.reference() if policy.lora_parameters() else nullcontext()
    with run.locked(wait=True) if processes.is_main else nullcontext(), adapter:
        rows = ev.evaluate(
            policy,
            settings,
            scorers,
            run,
            ev.Subject(run.run_id, "base", 0),
            micro_batch=runtime.micro_batch,
            progress=watcher.evaluation,
            processes=processes,
        )
        if processes.is_main:
            run.set_status("done")
    return rows
