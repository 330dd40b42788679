"""``sdpo-bench export``: hand a run's adapter on, as a file, as a whole pipeline, or to the hub."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from typing import Any, Literal

import click

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.library.model_card import RUN_FILE, licence_warning, model_card
from sdpo_bench.models.base_model import pipeline_files
from sdpo_bench.models.known_models import known_model, resolve_location
from sdpo_bench.models.kohya import kohya_bytes
from sdpo_bench.models.pipeline_files import read_folder
from sdpo_bench.models.pipeline_loading import left_out_parts
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.rollout.ddim import DEFAULTS as DDIM_DEFAULTS
from sdpo_bench.rollout.flow import scheduler_spaced_sigmas
from sdpo_bench.rollout.gaussian_step import NOISE_DEFAULTS
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.running.finished_run import open_finished_run
from sdpo_bench.runs.adapter import LORA_FILE, check_seal, require_adapter
from sdpo_bench.runs.run_folder import RunFolder, find_run
from sdpo_bench.runs.saved_adapter import load_adapter, read_adapter
from sdpo_bench.settings import EvaluationSettings, ModelSettings
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.output_paths import user_file

Format = Literal["diffusers", "kohya"]
CARD = "README.md"


def export_command(
    run_name: str,
    target: Path,
    force: bool,
    out: Path,
    form: Format = "diffusers",
    merge: bool = False,
    repo: str = "",
    yes: bool = False,
) -> None:
    """``sdpo-bench export``.

    Args:
        form: names of the adapter's tensors.
        merge: write the whole pipeline with the adapter in its denoiser.
        repo: hub repository to upload to, ``OWNER/NAME``; printed alone without ``yes``.
    """
    if merge and form == "kohya":
        raise UsageError("--merge writes a whole pipeline in diffusers' form; leave out --format kohya.")
    if yes and not repo:
        raise UsageError("--yes uploads what --push-to-hub OWNER/NAME names; give that too.")
    folder = find_run(out, run_name)
    require_adapter(folder)
    names = {"diffusers": LORA_FILE, "kohya": f"{folder.run_id}.safetensors"}
    destination = user_file(target / ("model_index.json" if merge else names[form]), out, "--to")
    if destination.exists() and not force:
        raise UsageError(f"'{destination}' is already there. Use --force to overwrite it.")
    check_seal(folder.lora)
    model: ModelSettings = validate(ModelSettings, folder.record()["config"]["model"], "model")
    destination.parent.mkdir(parents=True, exist_ok=True)
    if merge:
        _write_merged(folder, target)
        code = _merged_code(target)
    else:
        adapter = read_adapter(folder.lora)
        if adapter.notice:
            click.echo(f"note: {adapter.notice}.", err=True)
        atomic_write(destination, adapter.to_bytes() if form == "diffusers" else kohya_bytes(adapter))
        code = loading_code(model, target, names[form])
    click.echo(f"In Python:\n{indent(code + _sampling_code(folder, model), '  ')}")
    if repo:
        _push(folder, model, target, [] if merge else [destination], repo, yes)
    click.echo(str(target if merge else target / names[form]))


def loading_code(model: ModelSettings, folder: Path, file: str = LORA_FILE) -> str:
    """Python code that makes ``pipeline``, stock diffusers' pipeline of the base model with the adapter in ``folder``.

    The type is said for every part: without it transformers keeps a text encoder that is stored in half precision so.
    """
    location = resolve_location(known_model(model.name))
    revision = f", revision={model.revision!r}" if model.revision else ""
    return (
        "import torch\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipeline = DiffusionPipeline.from_pretrained({location!r}{revision}, dtype=torch.float32{_nones(location)})\n"
        f"pipeline.load_lora_weights({str(folder)!r}, weight_name={file!r})"
    )


def _merged_code(folder: Path) -> str:
    return (
        "import torch\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipeline = DiffusionPipeline.from_pretrained({str(folder)!r}, dtype=torch.float32{_nones(str(folder))})"
    )


def _sampling_code(folder: RunFolder, model: ModelSettings) -> str:
    """Python code that draws a picture with ``pipeline`` as the run's evaluation does; nothing where its sampler is
    none of stock diffusers (``_ddim``).

    A pipeline folder has no place for these numbers: prompt tokens, sigmas and guidance are arguments of each call.
    """
    files = pipeline_files(model)
    family = files.family(model.name) if files else None
    if files is None or family is None:
        return ""
    record = folder.record()
    steps = record["config"]["schedule"]["steps"]
    evaluation: EvaluationSettings = validate(EvaluationSettings, record["config"]["eval"], "eval")
    if family.flow:
        scheduler, arguments = "", _noise_levels(evaluation, steps, files.configs["scheduler"])
    elif not family.embeds_guidance(files.configs) and (ddim := _ddim(record.get("schedule", {}), evaluation, steps)):
        scheduler = f"from diffusers import DDIMScheduler\npipeline.scheduler = DDIMScheduler(**{ddim!r})\n"
        arguments = {"num_inference_steps": steps, "eta": evaluation.eta}
    else:
        return ""
    arguments |= family.stock_guidance(files.configs, evaluation.guidance_scale)
    if family.text_tokens(files.configs):
        arguments["max_sequence_length"] = family.chosen_text_tokens(files.configs, model.text_tokens)
    if model.resolution:
        arguments |= {"height": model.resolution, "width": model.resolution}
    return f"\n{scheduler}sampling = {arguments!r}\npicture = pipeline('a cat', **sampling).images[0]"


def _ddim(trained: Mapping[str, Any], evaluation: EvaluationSettings, steps: int) -> dict[str, Any]:
    """Arguments of stock diffusers' DDIM scheduler that make it the evaluation's sampler at ``steps`` steps.

    Empty where it cannot be: other samplers, the predicted original as picture, and step counts at which the stock
    scheduler, which always lands on ``t - N // T``, leaves the list of timesteps.

    Args:
        trained: the schedule in the run's record.
    """
    from diffusers import DDIMScheduler

    if trained.get("sampler") != "ddim" or evaluation.sampler != "ddim" or evaluation.image != "sample":
        return {}
    ours = make_schedule(trained, steps, sampler="ddim", eta=evaluation.eta, spacing=evaluation.spacing)
    options = {key: trained[key] for key in (*NOISE_DEFAULTS, *DDIM_DEFAULTS)}
    options["timestep_spacing"] = evaluation.spacing
    stock = DDIMScheduler(**options)
    stock.set_timesteps(steps)
    times = ours.timesteps.tolist()
    landing = [time - options["num_train_timesteps"] // steps for time in times]
    return options if stock.timesteps.tolist() == times and landing[:-1] == times[1:] and landing[-1] < 0 else {}


def _noise_levels(evaluation: EvaluationSettings, steps: int, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation's own sigmas, or ``steps`` of them as its spacing places them, before the scheduler's shift.

    Always a list: what a pipeline takes without one differs between families.

    Args:
        scheduler: settings of the model's scheduler.
    """
    if evaluation.sigmas:
        return {"sigmas": list(evaluation.sigmas)}
    if evaluation.spacing == "linspace":
        return {"sigmas": scheduler_spaced_sigmas(scheduler, steps)}
    return {"sigmas": [1 - i / steps for i in range(steps)]}


def _nones(location: str) -> str:
    """Arguments for the parts that a pipeline folder leaves out, without which stock diffusers refuses it; a pipeline
    of the hub leaves out none."""
    if not Path(location).is_dir():
        return ""
    parts = left_out_parts(Path(location), read_folder(Path(location)).family(location))
    return "".join(f", {part}=None" for part in parts)


def _write_merged(folder: RunFolder, target: Path) -> None:
    """The pipeline in float32, its denoiser's weights ``W + alpha / rank * B A``."""
    finished = open_finished_run(folder)
    exact = replace(finished, model=replace(finished.model, precision="fp32"))
    policy = exact.load_policy("cpu")
    load_adapter(policy, folder.lora)
    policy.denoiser.fuse_lora()
    policy.denoiser.unload_lora()
    policy.pipeline.save_pretrained(target)


def _push(folder: RunFolder, model: ModelSettings, target: Path, files: list[Path], repo: str, yes: bool) -> None:
    """Write the model card and the run's record beside the export; show what would be uploaded, or upload it."""
    merged = not files
    atomic_write(target / CARD, model_card(folder, merged))
    atomic_write(target / RUN_FILE, (folder.path / RUN_FILE).read_bytes())
    chosen = sorted(path for path in target.rglob("*") if path.is_file()) if merged else [*files]
    if not merged:
        chosen += [target / CARD, target / RUN_FILE]
    if warning := licence_warning(model.name, merged):
        click.echo(f"warning: {warning}", err=True)
    names = [path.resolve().relative_to(target.resolve()).as_posix() for path in chosen]
    for name in names:
        click.echo(f"{name} ({(target / name).stat().st_size / 1e6:.2f} MB)")
    if not yes:
        click.echo(f"nothing was uploaded. Read '{target / CARD}', then add --yes --force to upload this to {repo}.")
        return
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=target, allow_patterns=names, commit_message=folder.run_id)
    except Exception as error:  # network, login, quota and validation errors have no common base
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise MissingError(f"'{repo}' was not uploaded: {reason} Log in with: hf auth login") from error
    click.echo(f"uploaded to https://huggingface.co/{repo}")
