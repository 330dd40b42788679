"""Unknown settings and options: the error names the setting that the typed name most likely stands for.

Other libraries call the same things by other names (``dtype``, ``learning_rate``, ``rank``), which are spelled nothing
like the names here. They are suggestions in an error message only; no alias is ever accepted as a setting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields

from sdpo_bench.errors import UsageError, did_you_mean, nearest
from sdpo_bench.settings import SECTIONS

_TARGETS: Mapping[tuple[str, ...], str] = {
    ("model.name",): "model base_model model_name model_id pretrained_model pretrained_model_name_or_path",
    ("method.name",): "method algorithm algo loss_type",
    ("reward.name",): "reward reward_fn reward_function reward_model",
    ("model.precision",): "dtype torch_dtype weight_dtype compute_dtype mixed_precision fp16 bf16 tf32 allow_tf32 half",
    ("model.guidance_scale", "eval.guidance_scale"): "cfg cfg_scale guidance guidance_scale",
    ("model.resolution",): "resolution height width image_size size",
    ("model.compile",): "compile torch_compile use_compile compile_backend",
    ("model.cpu_offload",): "offload enable_model_cpu_offload",
    ("model.gradient_checkpointing",): "gradient_checkpoint grad_checkpointing activation_checkpointing",
    ("model.lora_rank",): "rank r lora_r lora_dim",
    ("model.lora_alpha",): "alpha lora_scale",
    ("model.lora_targets",): "target_modules lora_target_modules targets",
    ("schedule.steps", "eval.steps"): "steps num_steps sample_steps num_inference_steps inference_steps",
    ("schedule.sampler", "eval.sampler"): "scheduler sampler noise_scheduler",
    ("schedule.spacing", "eval.spacing"): "timestep_spacing",
    ("schedule.eta", "eval.eta"): "noise_level",
    ("schedule.sde",): "dynamics_type sde_type",
    ("schedule.sde_steps",): "sde_window_size sde_window_range sde_window num_sde_steps",
    ("sample.prompts",): "prompts prompt_file prompt_fn prompt_set dataset",
    ("sample.images_per_epoch",): "samples_per_epoch sample_batch_size num_samples",
    ("update.minibatch", "sample.images_per_epoch"): "batch_size train_batch_size",
    ("update.minibatch",): "minibatch_size mini_batch_size",
    ("update.accumulation",): "gradient_accumulation_steps gradient_accumulation accumulation_steps grad_accum",
    ("update.inner_epochs",): "num_inner_epochs ppo_epochs",
    ("update.lr",): "lr learning_rate",
    ("update.betas",): "beta1 beta2 adam_beta1 adam_beta2 adam_betas",
    ("update.epsilon",): "adam_epsilon adam_eps",
    ("update.weight_decay",): "wd adam_weight_decay",
    ("update.max_grad_norm",): "grad_clip gradient_clip gradient_clipping clip_grad_norm grad_norm",
    ("advantage.normalisation",): "normalization whiten whiten_rewards",
    ("advantage.gamma", "method.temporal_discount"): "gamma discount discount_factor",
    ("advantage.clip",): "adv_clip adv_clip_max advantage_clip",
    ("method.clip_range", "advantage.clip"): "clip clip_eps clip_range cliprange clip_epsilon ppo_clip",
    ("method.kl_weight", "method.beta"): "kl_coef kl_coeff kl_penalty kl_beta",
    ("method.beta", "method.kl_weight", "update.betas"): "beta beta_dpo dpo_beta",
    ("method.group_size",): "num_generations num_images_per_group",
    ("eval.images_per_prompt",): "num_images_per_prompt",
    ("seed",): "seed random_seed manual_seed",
    ("budget.images",): "epochs num_epochs num_train_epochs max_epochs",
    ("budget.optimiser_steps",): "max_steps max_train_steps train_steps optimizer_steps num_train_steps",
    ("budget.seconds",): "max_time max_seconds max_hours",
}
"""Settings, the likeliest first, and what other libraries call them (diffusers, PEFT, TRL, DDPO, D3PO, Flow-GRPO)."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    alias: settings for settings, aliases in _TARGETS.items() for alias in aliases.split()
}

MOST_LISTED = 20
"""Settings that an error message lists: those of any section, not those of all."""
RESUME = ["resume", "resume_from", "resume_from_checkpoint", "resume_training", "continue"]
RESUMES = "To resume, give the same command again: it goes on where it stopped."
OPTIONS = {"method.name": "--method NAME", "reward.name": "--reward NAME", "model.name": "--model NAME"}
"""Settings that have an option of their own, beside seed and budget."""


def option_meant(option: str, section: str = "") -> str:
    """What to type instead of an option that ``run`` or ``eval`` lacks; empty where nobody calls a setting so.

    Args:
        option: as typed, e.g. ``--lr``.
        section: the only section whose settings the command takes; empty for all.
    """
    name = option.lstrip("-").lower().replace("-", "_")
    if name in RESUME:
        return RESUMES
    own = [f"{key}.{name}" for key, owner in SECTIONS.items() if name in [field.name for field in fields(owner)]]
    targets = [target for target in ALIASES.get(name, own) if target.startswith(section)]
    return f"Write {' or '.join(map(_typed, targets))}." if targets else ""


def _typed(setting: str) -> str:
    """How a setting is given to ``run``."""
    section, _, name = setting.rpartition(".")
    if section == "budget":
        return f"--budget {name}=N"
    return OPTIONS.get(setting, f"--set {setting}=VALUE" if section else f"--{setting} N")


def unknown_setting(key: str, valid: Sequence[str], *, unlisted: Sequence[str] = (), source: str = "") -> UsageError:
    """The error for a setting that does not exist, with what was probably meant.

    Args:
        key: as typed, with any section or none.
        valid: ``section.key`` of all settings of the command.
        unlisted: other settings that the command takes, which a list of the valid ones leaves out.
        source: the preset or suite that has it; empty for the command line.
    """
    where = f" (from {source})" if source else ""
    meant = _meant(key, {*valid, *unlisted})
    if meant:
        hint = f" Did you mean {' or '.join(map(repr, meant))}? See: sdpo-bench list settings"
    else:
        hint = _of_other_methods(key, valid) or _nearest_setting(key, valid)
    return UsageError(f"unknown setting '{key}'{where}.{hint}")


def _meant(key: str, valid: set[str]) -> list[str]:
    """Settings that an alias stands for; in the section that was typed if it has one of that kind."""
    section, _, name = key.rpartition(".")
    targets = ALIASES.get(name.lower().replace("-", "_"), ())
    if section == "method":  # what a method weighs by beta is nothing of the optimiser's
        targets = tuple(target for target in targets if not target.startswith("update."))
    alike = [f"{section}.{target.rpartition('.')[2]}" for target in targets]
    return [t for t in dict.fromkeys(alike) if t in valid][:1] or [target for target in targets if target in valid]


def _of_other_methods(key: str, valid: Sequence[str]) -> str:
    """What an alias stands for in methods other than that of the run, and what this one has."""
    section, _, name = key.rpartition(".")
    targets = ALIASES.get(name.lower().replace("-", "_"), ()) if section in ("", "method") else ()
    meant = [repr(target) for target in targets if target.startswith("method.")]
    if not meant:
        return ""
    own = sorted(setting for setting in valid if setting.startswith("method."))
    there = f"This one has {', '.join(own)}" if own else "This one has no settings"
    return (
        f" Other methods have {' or '.join(meant)}. {there}. "
        "The settings of another: sdpo-bench run --method NAME --dry-run"
    )


def _nearest_setting(key: str, valid: Sequence[str]) -> str:
    """The settings of the same section; without a known section those of that name, as far as there are any."""
    close = [v for v in valid if v.startswith(f"{key.partition('.')[0]}.")] or [
        v for v in valid if v.endswith(f".{key.rpartition('.')[2]}")
    ]
    names = close or valid
    hint = nearest(key, names) if len(names) <= MOST_LISTED else did_you_mean(key, names)
    return hint + ("" if close else " See: sdpo-bench list settings")
