"""Warnings that a run is given before its training and after it; those of an epoch are ``training.collapse_guards``."""

from sdpo_bench.config import split_prompts
from sdpo_bench.ledger import limit_text
from sdpo_bench.models.cut_prompts import GUARD, prompts_of_run, read_by
from sdpo_bench.training import collapse_guards
from sdpo_bench.training.loop import Trainer


def warn_of_cut_prompts(trainer: Trainer) -> None:
    """Once a run; stock pipelines cut prompts too, so it is no reason to refuse."""
    text = read_by(trainer.policy, prompts_of_run(trainer.config)).warning
    if text and collapse_guards.record_once(trainer.run, collapse_guards.Warned(0, GUARD, text)):
        trainer.warn(text)


def warn_of_splits(trainer: Trainer) -> None:
    """Once a run, where a split of the evaluation is not what it is called."""
    text = split_prompts.split_warning(trainer.config.sample.prompts, trainer.config.eval)
    if text and collapse_guards.record_once(trainer.run, collapse_guards.Warned(0, split_prompts.GUARD, text)):
        trainer.warn(text)


def warn_of_no_update(trainer: Trainer) -> None:
    """A budget of seconds can end before the first update; the run is done all the same, and its gain is 0."""
    if trainer.method.signal == "none" or trainer.ledger.optimiser_steps:
        return
    text = (
        f"the budget of {limit_text(trainer.limit.amount, trainer.limit.axis)} ended before the first optimiser step: "
        "the result is the base model, and its gain says nothing about the method. Use a larger --budget"
    )
    warned = collapse_guards.Warned(trainer.epoch, "no_update", text)
    if trainer.processes.is_main and collapse_guards.record_once(trainer.run, warned):
        trainer.warn(text)
