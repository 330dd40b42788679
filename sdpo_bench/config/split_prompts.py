"""Whether the splits of an evaluation are what their names say: the prompts of training, and prompts it never had.

``eval.train`` and ``eval.unseen`` are settings of their own, so that a finished run can be judged on other prompts.
Hence neither follows ``sample.prompts``, and a table would call other prompts the training's, or the training's unseen.
"""

from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.settings import EvaluationSettings

GUARD = "splits"
"""Name of the warning in ``warnings.jsonl``."""


def split_warning(training: str, settings: EvaluationSettings) -> str:
    """What to warn of, in one line; empty where both splits are what they are called.

    Args:
        training: prompt set of training (``sample.prompts``).
    """
    trained = set(load_prompts(training))
    sentences = []
    if settings.train:
        texts = load_prompts(settings.train)
        others = [text for text in texts if text not in trained]
        if others:
            sentences.append(
                f"{len(others)} of {len(texts)} prompts of eval.train = '{settings.train}' are not in sample.prompts = "
                f"'{training}', e.g. '{others[0]}': the train split is not what was trained on. Use --set "
                f"eval.train={training}"
            )
    if settings.unseen:
        texts = load_prompts(settings.unseen)
        shared = [text for text in texts if text in trained]
        if shared:
            sentences.append(
                f"{len(shared)} of {len(texts)} prompts of eval.unseen = '{settings.unseen}' are in sample.prompts = "
                f"'{training}', e.g. '{shared[0]}': the unseen split is trained on. Use other prompts, or none: --set "
                "eval.unseen="
            )
    return "; ".join(sentences)
