"""The model card of a run's adapter: what it was trained with, what it cost, what it scores, and how to repeat it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sdpo_bench.models.known_models import known_model, resolve_location
from sdpo_bench.results.comparability import sampler_words
from sdpo_bench.results.read_results import Notice, Run, read_run
from sdpo_bench.results.run_view import bases_beside, own_settings, score_rows
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.training.bill_text import bill_text

RUN_FILE = "run.json"
FREE = ("MIT", "Apache-2.0")


def licence_of(model: str) -> str:
    """Licence of a base model by its name; empty where it is not known here."""
    return known_model(model).licence


def licence_warning(model: str, merged: bool) -> str:
    """What to check before an upload; empty for a licence that asks for its notice alone."""
    licence = licence_of(model)
    if licence in FREE:
        return ""
    what = "the merged weights, which contain the base model," if merged else "an adapter of it"
    known = f"has the licence '{licence}', which restricts use" if licence else "has a licence that is not known here"
    return (
        f"the base model '{model}' {known}. Read it before you upload: it may forbid or restrict publication of {what} "
        "or commercial use, and may ask for a notice. That decision is yours."
    )


def model_card(folder: RunFolder, merged: bool = False) -> str:
    """README.md of a repository with the run's adapter (or its merged pipeline) and its ``run.json``.

    Raises:
        UsageError: a damaged record.
    """
    found = read_run(folder.path)
    assert not isinstance(found, Notice), found.text  # a run whose adapter is exported can be read
    run = found[0]
    config = folder.record()["config"]
    model = config["model"]["name"]
    warning = licence_warning(model, merged)
    base = resolve_location(known_model(model))
    shown_base = model if base.startswith("/") else base
    settings = "\n".join(f"| `{key}` | {_cell(value)} |" for key, value in own_settings(run).items())
    bill = bill_text(_whole(run.bill), run.seconds) if run.bill else "not recorded"
    content = "The pipeline with the adapter merged into its denoiser" if merged else "A LoRA adapter of the denoiser"
    reward = f"{config['reward']['name']}** (version {folder.record()['reward_version']})"
    return f"""{_header(shown_base, licence_of(model), merged)}
# {run.id}

{content}, trained with sdpo-bench: method **{config["method"]["name"]}**, reward **{reward},
base model **{shown_base}**, seed {config["seed"]}.

## Result
{_table(run)}

## Cost
```text
{bill}
```

## Settings
| setting | value |
|---|---|
{settings}

## Repeat it
```bash
sdpo-bench run --config {RUN_FILE}
```

## Base model and licence
`{shown_base}`: {licence_of(model) or "see its page"}.{" Note: " + warning if warning else ""}
"""


def _header(base: str, licence: str, merged: bool) -> str:
    lines = [
        "---",
        f"base_model: {base}",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags:",
        "- sdpo-bench",
    ]
    lines += [] if merged else ["- lora"]
    lines += [f"license: {licence.lower()}" if licence in FREE else "license: other", "---"]
    return "\n".join(lines)


def _table(run: Run) -> str:
    bases, _ = bases_beside(run)
    rows: Sequence[Mapping[str, Any]] = score_rows(run, bases)
    if not rows:
        return f"No scores beside the base model yet: `sdpo-bench eval {run.id}`."
    names = [reward for reward, _ in {(row["reward"], row["version"]) for row in rows}]
    several = {name for name in names if names.count(name) > 1}
    parts = []
    for sampler in sorted({row["sampler"] for row in rows}):
        lines = ["| split | reward | steps | base | tuned | difference | images |", "|---|---|--:|--:|--:|--:|--:|"]
        lines += [_row(row, several) for row in rows if row["sampler"] == sampler]
        parts += [f"Evaluation sampler: {sampler_words(sampler)}.", "\n".join(lines)]
    parts.append(
        "Means over images of one checkpoint of one training seed: no interval for the method follows from them."
    )
    return "\n\n".join(parts)


def _row(row: Mapping[str, Any], several: Collection[str]) -> str:
    """A line of the table; rewards of which it has ``several`` versions are named with theirs."""
    reward = f"{row['reward']} (version {row['version']})" if row["reward"] in several else row["reward"]
    numbers = f"{row['base']:.3f} | {row['tuned']:.3f} | {row['difference']:+.3f}"
    return f"| {row['split']} | {reward} | {row['steps']} | {numbers} | {row['images']} |"


def _whole(bill: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as whole numbers, as a bill is written."""
    return {key: _whole(value) if isinstance(value, Mapping) else round(value) for key, value in bill.items()}


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|")
