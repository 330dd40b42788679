"""The work of a whole run on one scale, for its progress bar; known before the run from its settings alone."""

from sdpo_bench.api import Search
from sdpo_bench.config.resolve import Resolved
from sdpo_bench.estimates.time_estimate import (
    Work,
    choice_work,
    count_epochs,
    curve_work,
    evaluation_work,
    make_method,
    training_work,
)
from sdpo_bench.settings import Runtime
from sdpo_bench.system.progress import RunPlan

BACKWARD = 2.0  # a backward pass in forward passes: gradients of activations and of weights
IMAGE = 2.0  # decoding and scoring one image, in denoiser calls; measured on emoji-turbo with emoji-align


def progress_plan(resolved: Resolved, runtime: Runtime) -> RunPlan:
    """Plan of a run; a base model that was scored in this results folder counts as no work."""
    from sdpo_bench.evaluation.base_scores import base_folder

    config, method = resolved.config, make_method(resolved)
    training = training_work(resolved)
    judging = _units(evaluation_work(resolved))
    candidates = method.candidates if isinstance(method, Search) else 1
    scored = base_folder(config.model, config.eval, runtime).evaluation.exists()
    base = 0.0 if scored else judging / candidates
    if training is None:
        return RunPlan(config.method.name, 0, 0, 0.0, judging, base)
    epochs = count_epochs(config, training, method) if training.images else 0
    beside = choice_work(config, training, method) + curve_work(config, training, method)
    return RunPlan(
        config.method.name, epochs, training.denoiser_calls, _units(training) + _units(beside), judging, base
    )


def _units(work: Work) -> float:
    forward = work.forward + work.outside_forward
    return forward + BACKWARD * work.backward + IMAGE * (work.decoded + work.outside_images)
