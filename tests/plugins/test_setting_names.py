"""Names that other libraries use lead to the setting that is meant, and are never accepted in its place."""

from dataclasses import fields

import pytest

from sdpo_bench.cli.entry import main
from sdpo_bench.config.resolve import NAMES, Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.ledger import AXES
from sdpo_bench.plugins.registry import plugins
from sdpo_bench.plugins.setting_names import ALIASES, unknown_setting
from sdpo_bench.settings import SECTIONS


def all_settings() -> set[str]:
    """Every setting that ``run --set`` takes with some method."""
    found = {f"{section}.{field.name}" for section, owner in SECTIONS.items() for field in fields(owner)}
    for plugin in plugins("methods").values():
        found |= {f"method.{field.name}" for field in fields(plugin.load().Settings)}
    return found | {"seed", *NAMES} | {f"budget.{axis}" for axis in AXES}


def test_every_alias_leads_to_a_setting_that_exists():
    missing = {alias: set(settings) - all_settings() for alias, settings in ALIASES.items()}
    assert not {alias: settings for alias, settings in missing.items() if settings}


def said(key: str, method: str = "sdpo") -> str:
    with pytest.raises(UsageError) as refused:
        resolve(Request(method=method, overrides={key: 1}))
    return str(refused.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.dtype", "model.precision"),
        ("dtype", "model.precision"),
        ("train.mixed_precision", "model.precision"),
        ("torch_dtype", "model.precision"),
        ("noise_level", "schedule.eta' or 'eval.eta"),
        ("schedule.sde_window_size", "schedule.sde_steps"),
        ("sample.sde_window_range", "schedule.sde_steps"),
        ("lr", "update.lr"),
        ("model.learning_rate", "update.lr"),
        ("update.learning-rate", "update.lr"),
        ("update.batch_size", "update.minibatch"),
        ("sample.train_batch_size", "sample.images_per_epoch"),
        ("model.rank", "model.lora_rank"),
        ("lora.r", "model.lora_rank"),
        ("alpha", "model.lora_alpha"),
        ("model.cfg", "model.guidance_scale"),
        ("eval.cfg_scale", "eval.guidance_scale"),
        ("schedule.num_inference_steps", "schedule.steps"),
        ("eval.num_steps", "eval.steps"),
        ("train.seed", "seed"),
        ("train.num_epochs", "budget.images"),
        ("max_train_steps", "budget.optimiser_steps"),
        ("update.gradient_accumulation_steps", "update.accumulation"),
        ("method.cliprange", "method.clip_range"),
        ("discount_factor", "advantage.gamma' or 'method.temporal_discount"),
        ("model.target_modules", "model.lora_targets"),
        ("height", "model.resolution"),
        ("Width", "model.resolution"),
        ("torch_compile", "model.compile"),
        ("batch_size", "update.minibatch' or 'sample.images_per_epoch"),
    ],
)
def test_a_name_of_another_library_leads_to_the_setting_meant(key, meant):
    assert said(key) == f"unknown setting '{key}'. Did you mean '{meant}'? See: sdpo-bench list settings"


def test_a_setting_of_a_method_is_suggested_only_where_the_method_has_it():
    assert "Did you mean 'method.kl_weight'?" in said("kl_coef", "grpo")
    assert "Did you mean 'method.beta'?" in said("kl_coef", "pso")
    assert "Did you mean" not in said("kl_coef", "sdpo")
    assert "Did you mean" not in said("method.beta", "ddpo"), "AdamW's betas are none of a method's settings"
    assert "Did you mean 'update.betas'?" in said("update.beta", "pso")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("kl_coef", "Other methods have 'method.kl_weight' or 'method.beta'."),
        ("method.kl_beta", "Other methods have 'method.kl_weight' or 'method.beta'."),
        ("method.num_generations", "Other methods have 'method.group_size'."),
    ],
)
def test_a_setting_of_other_methods_is_named_as_such(key, hint):
    own = "This one has method.clip_range, method.guard, method.log_scale, method.reward, method.temporal_discount."
    command = "sdpo-bench run --method NAME --dry-run"
    assert said(key) == f"unknown setting '{key}'. {hint} {own} The settings of another: {command}"


def test_only_the_settings_of_a_section_are_listed():
    assert said("xyz") == "unknown setting 'xyz'. See: sdpo-bench list settings"
    assert said("clip_rnge").endswith("Did you mean 'method.clip_range'? See: sdpo-bench list settings")
    assert "Did you mean 'eval.steps'? Valid: eval.curve_images_per_prompt, " in said("eval.stps")


def test_a_reward_setting_of_that_kind_comes_first():
    valid = ["model.precision", "reward.hpsv2.precision"]
    assert "Did you mean 'reward.hpsv2.precision'?" in str(unknown_setting("reward.hpsv2.dtype", valid))
    assert "Did you mean 'model.precision'?" in str(unknown_setting("reward.aesthetic.dtype", valid))


@pytest.mark.parametrize("key", ["sample.prompts", "checkpoint.prompts"])
@pytest.mark.parametrize("choose", ["last", "validation"])
def test_prompts_that_are_empty_are_refused_with_what_is_valid(key, choose):
    with pytest.raises(UsageError, match=rf"^{key} is empty. Name one, or leave it out. See: sdpo-bench list prompts$"):
        resolve(Request(overrides={key: "", "checkpoint.choose": choose}))


# -- options of commands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run --lr 1e-4", "no option '--lr'. Write --set update.lr=VALUE."),
        ("run --epochs 3", "no option '--epochs'. Write --budget images=N."),
        ("run --max-train-steps=3", "no option '--max-train-steps'. Write --budget optimiser_steps=N."),
        ("run --steps 4", "no option '--steps'. Write --set schedule.steps=VALUE or --set eval.steps=VALUE."),
        ("run --lora-rank 4", "no option '--lora-rank'. Write --set model.lora_rank=VALUE."),
        ("run --algorithm ddpo", "no option '--algorithm'. Write --method NAME."),
        ("run --random-seed 1", "no option '--random-seed'. Write --seed N."),
        ("run --resume", "no option '--resume'. To resume, give the same command again: it goes on where it stopped."),
        ("sweep smoke --resume", "no option '--resume'. To resume, give the same command again"),
        ("resume", "no command 'resume'. To resume, give the same command again"),
        ("eval RUN --cfg 2", "no option '--cfg'. Write --set eval.guidance_scale=VALUE."),
        ("eval RUN --lr 2", "No such option"),
        ("report --lr 2", "No such option"),
        ("list method", "Did you mean 'methods'? Valid: methods, models, presets,"),
        ("report --only leaderbord", "Did you mean 'leaderboard'? Valid: ablation, against, bill,"),
        ("run --dry-rum", "Did you mean"),
    ],
)
def test_unknown_options_and_words_lead_to_what_is_typed_here(command, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
