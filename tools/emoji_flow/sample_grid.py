"""Draw the picture of the model card: a row for each prompt, a column for each number of steps, one noise a row.

python -m tools.emoji_flow.sample_grid docs/images/emoji-flow.png
"""

import sys
from pathlib import Path

import torch

from sdpo_bench.models.base_model import load_policy, scheduler_config
from sdpo_bench.rollout.sampling import Noise, sample
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.scoring.image_statistics import grid
from sdpo_bench.settings import ModelSettings

STEP_COUNTS = (1, 2, 4, 8, 16)
PROMPTS = ["lion", "fox", "butterfly on a blue background", "frog", "bee on a white background", "dolphin"]
"""Animals that it draws well; the measures of the card are of all 45."""


@torch.no_grad()
def main(path: Path) -> None:
    """Pictures of the deterministic sampler, from noise of seed 0."""
    policy = load_policy(ModelSettings(name="emoji-flow", text_tokens=0))
    columns = []
    for steps in STEP_COUNTS:
        schedule = make_schedule(scheduler_config(policy), steps, sampler="flow", eta=0.0)
        latents, _ = sample(policy, schedule, PROMPTS, Noise((0, "card")), groups=range(len(PROMPTS)))
        columns.append(policy.decode(latents))
    rows = list(zip(PROMPTS, torch.stack(columns, dim=1), strict=True))
    grid(rows, [f"{steps} step{'s' * (steps != 1)}" for steps in STEP_COUNTS], path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
