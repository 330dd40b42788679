"""Which pictures are decoded and scored, with whose prompt, and where the answers go."""

from types import SimpleNamespace

import pytest
import torch

from sdpo_bench.api import NoSettings, Reward
from sdpo_bench.ledger import Ledger
from sdpo_bench.rollout.sampling import Trajectories
from sdpo_bench.scoring.dense_rewards import Queries
from sdpo_bench.scoring.scorer import Scorer, ask_rewards


class Tagged(Reward):
    """The picture's number plus 1000 for each letter of the prompt."""

    version = "1"
    source = "test"

    def __init__(self):
        super().__init__(NoSettings())

    def __call__(self, images, prompts):
        return images[:, 0, 0, 0] + 1000 * torch.tensor([float(len(prompt)) for prompt in prompts])


def asked(shared, *, decode_sample=False, micro_batch=64, overlap=False):
    """Groups "a" and "bb" of two members at three steps. Predicted originals are numbered 100 group + 10 member + step
    (at step 0 without the member where the start is shared), the samples 0.5 more than the last of them."""
    group, member, step = torch.meshgrid(torch.arange(2.0), torch.arange(2.0), torch.arange(3.0), indexing="ij")
    numbers = 100 * group + 10 * member + step
    if shared:
        numbers[:, :, 0] = 100 * group[:, :, 0]
    x0 = numbers[..., None, None, None].expand(2, 2, 3, 3, 2, 2).clone()
    latents = torch.cat([torch.zeros_like(x0), x0[:, :, -1:] + 0.5], 2)
    trajectories = Trajectories(("a", "bb"), None, latents, x0, torch.zeros(2, 2, 3), shared)
    steps = torch.tensor([2] if decode_sample else [0, 2, 1]).expand(2, 2, -1)
    scorer = Scorer("tagged", Tagged(), Ledger())
    policy = SimpleNamespace(decode=lambda latents: latents)
    queries = Queries(steps, torch.zeros(0), 0 if decode_sample else 1)
    options = {"decode_sample": decode_sample, "micro_batch": micro_batch, "overlap": overlap}
    return ask_rewards(policy, trajectories, queries, scorer, **options), scorer.ledger


@pytest.mark.parametrize("how", [{}, {"micro_batch": 3}, {"micro_batch": 1, "overlap": True}])
@pytest.mark.parametrize(("shared", "calls"), [(True, 10), (False, 12)])
def test_every_queried_step_has_the_score_of_its_own_picture(shared, calls, how):
    """Queries are first, last, anchor; a shared first step is scored once a group. Pictures are those of the last."""
    found, ledger = asked(shared, **how)
    first = [[1000, 1000], [2100, 2100]] if shared else [[1000, 1010], [2100, 2110]]
    assert found.rewards[..., 0].tolist() == first
    assert found.rewards[..., 1].tolist() == [[1002, 1012], [2102, 2112]]
    assert found.rewards[..., 2].tolist() == [[1001, 1011], [2101, 2111]]
    assert found.final_images[:, :, 0, 0, 0].tolist() == [[2, 12], [102, 112]]
    assert ledger.reward_calls == calls and not sum(ledger.cached.values())


def test_samples_are_scored_where_they_are_what_counts():
    found, ledger = asked(True, decode_sample=True)
    assert found.rewards[..., 0].tolist() == [[1002.5, 1012.5], [2102.5, 2112.5]]
    assert found.final_images[:, :, 0, 0, 0].tolist() == [[2.5, 12.5], [102.5, 112.5]] and ledger.reward_calls == 4
