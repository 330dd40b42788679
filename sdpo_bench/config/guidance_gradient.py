"""``update.guidance_gradient`` where a run has no second branch that could lose its gradient.

A preset names it for the guidance and the model that it was written for. Where a run has another guidance, model or
method, the preset's value gives way, so that the run keeps the id that it has without it; the user's own is refused.
"""

from dataclasses import replace

from sdpo_bench.api import Method
from sdpo_bench.errors import UsageError
from sdpo_bench.models.base_model import pipeline_files
from sdpo_bench.settings import ModelSettings, RunConfig

KEY = "update.guidance_gradient"


def fit(config: RunConfig, method: Method, sources: dict[str, str]) -> RunConfig:
    """The configuration with a value that has an effect, ``sources`` naming why it was changed.

    Raises:
        UsageError: the user's own value would have none.
    """
    if config.update.guidance_gradient == "both":
        return config
    reason = _without_effect(config.model, method)
    if reason is None:
        return config
    if sources.get(KEY) == "you":
        raise no_effect(reason)
    sources[KEY] = reason
    return replace(config, update=replace(config.update, guidance_gradient="both"))


def no_effect(reason: str) -> UsageError:
    """The refusal of a value that would change nothing."""
    return UsageError(
        f"{KEY} = conditional takes the unconditional branch of classifier-free guidance as a constant, and {reason}: "
        f"it would have no effect. Leave it out, or use --set {KEY}=both."
    )


def _without_effect(model: ModelSettings, method: Method) -> str | None:
    """Why no guided prediction with two branches is differentiated; ``None`` where one is, or nobody knows yet."""
    if method.signal == "none":
        return "the method trains nothing"
    if model.guidance_scale <= 1:
        return f"model.guidance_scale = {model.guidance_scale:g} has none"
    if not method.guided_loss:
        return "the method's loss leaves guidance out"
    files = pipeline_files(model)
    if files and files.family(model.name).embeds_guidance(files.configs):
        return EMBEDDED
    return None


EMBEDDED = "the guidance of this model is an input of its denoiser"
