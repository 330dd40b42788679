"""``sdpo_bench.load_policy``: sample from a run in a notebook."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_bench.library.results import Run, open_run

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Policy:
    """A run's model, and its base model, ready to sample with the run's own evaluation sampler.

    Attributes:
        run: the run that it is of.
        engine: the loaded ``sdpo_bench.models.policy.Policy``, for what :meth:`sample` does not offer.
    """

    run: Run
    engine: Any
    _evaluation: Any
    _search: Any

    def sample(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int = 1,
        images: int = 1,
        base: bool = False,
        micro_batch: int = 64,
    ) -> "list[Image]":
        """Pictures, image by image of each prompt.

        The noise depends on prompt, image number and the evaluation's noise bank alone, so the base model's pictures
        are those of the same noise.

        Args:
            steps: denoising steps, 1 to 1000.
            images: pictures of each prompt.
            base: of the base model instead.
            micro_batch: most pictures at once.

        Raises:
            UsageError: a step count that the model does not have.
        """
        import numpy as np
        from PIL import Image

        from sdpo_bench.evaluation.evaluate import evaluation_schedule, sample_images

        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        pairs = [(text, number) for text in texts for number in range(images)]
        schedule = evaluation_schedule(self.engine, self._evaluation, steps)
        with self.engine.reference() if base else nullcontext():
            search = None if base else self._search
            pictures = sample_images(self.engine, schedule, self._evaluation, pairs, micro_batch, search)
        pixels = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(np.ascontiguousarray(one)) for one in pixels]


def load_policy(run: Run | str | Path, *, results: str | Path = "results", device: str = "auto") -> Policy:
    """The model that a finished run has trained.

    Args:
        run: a run, its id, the unique beginning of one, or its folder.
        results: results folder, for ids.

    Raises:
        UsageError: no such run, one that is not finished, or a base model that has changed since.
        MissingError: weights or a device that are not here.
    """
    from sdpo_bench.models.base_model import pick_device
    from sdpo_bench.running.finished_run import load_tuned, open_finished_run
    from sdpo_bench.runs.run_folder import RunFolder

    chosen = open_run(run, results)
    finished = open_finished_run(RunFolder(chosen.folder))
    policy, search = load_tuned(finished, pick_device(device))
    return Policy(chosen, policy, finished.evaluation, search)
