"""Nothing is scored twice by one reward version in one run, and remembering changes no byte of a resumed run."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import make_resolved, make_trainer
from sdpo_bench.api import Execution, NoSettings, Reward
from sdpo_bench.errors import RunFailed
from sdpo_bench.ledger import Ledger
from sdpo_bench.reporting.tables.cost_tables import bill_table
from sdpo_bench.rewards.jpeg_incompressibility import JpegIncompressibility
from sdpo_bench.scoring.score_cache import ScoreCache, picture_digests, score_key
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.training import checkpoint
from sdpo_bench.training.bill_text import bill_text


class Counting(Reward):
    """Mean brightness plus the prompt's length; keeps what it was asked."""

    version = "1"
    source = "test"

    def __init__(self):
        super().__init__(NoSettings())
        self.asked = []

    def __call__(self, images, prompts):
        self.asked += [(round(float(image.mean()), 6), prompt) for image, prompt in zip(images, prompts)]
        return images.mean((1, 2, 3)) + torch.tensor([float(len(prompt)) for prompt in prompts])


def grey(levels):
    return torch.tensor([float(level) for level in levels]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), min_size=1, max_size=6), max_size=5))
def test_every_question_is_asked_once_and_every_answer_is_right(batches):
    reward, ledger = Counting(), Ledger()
    scorer = Scorer("counting", reward, ledger)
    questions = [question for batch in batches for question in batch]
    for batch in batches:
        levels, prompts = zip(*batch)
        assert scorer(grey(levels), prompts).tolist() == [level / 8 + 1 for level in levels]
    assert len(reward.asked) == len(set(reward.asked)) == len(set(questions))
    assert ledger.reward_calls == len(reward.asked)
    assert ledger.reward_calls + sum(ledger.cached.values()) == len(questions)


def test_the_oldest_scores_are_forgotten_first():
    cache = ScoreCache(capacity=3)
    cache.put([b"a" * 16, b"b" * 16, b"c" * 16, b"d" * 16], [1.0, 2.0, 3.0, 4.0])
    assert [cache.get(key * 16) for key in (b"a", b"b", b"c", b"d")] == [None, 2.0, 3.0, 4.0]
    assert len(cache) == 3


@pytest.mark.parametrize("count", [0, 3, 7])
def test_a_cache_comes_back_from_its_state_with_its_order(count):
    cache, again = ScoreCache(capacity=5), ScoreCache(capacity=5)
    cache.put([bytes([i]) * 16 for i in range(count)], torch.rand(count).tolist())
    again.put([b"x" * 16], [9.0])
    again.load_state(cache.state())
    assert list(again._scores.items()) == list(cache._scores.items())


def test_reward_version_prompt_and_every_bit_of_a_picture_are_told_apart():
    image = torch.rand(1, 3, 4, 4)
    other = image.clone()
    other[0, 2, 3, 3] = torch.nextafter(other[0, 2, 3, 3], torch.tensor(2.0))
    turned = image.reshape(1, 3, 2, 8)
    digests = [picture_digests(picture)[0] for picture in (image, other, turned)]
    questions = [("r", "1", "p"), ("r", "2", "p"), ("s", "1", "p"), ("r", "1", "q"), ("r", "1\0p", "")]
    assert len({score_key(r, v, digest, p) for digest in digests for r, v, p in questions}) == 15


def test_a_new_version_is_asked_again(monkeypatch):
    reward = Counting()
    scorer = Scorer("counting", reward)
    scorer(grey([1]), ["a"])
    monkeypatch.setattr(Counting, "version", "2")
    scorer(grey([1]), ["a"])
    assert len(reward.asked) == 2


@dataclass(frozen=True)
class FactorSettings:
    factor: float = 1.0
    threads: Execution[int] = 1


class Factor(Reward):
    """Mean brightness times a setting; says nothing of its version beyond ``version``."""

    Settings = FactorSettings
    version = "1"
    source = "test"

    def __call__(self, images, prompts):
        return self.settings.factor * images.mean((1, 2, 3))


def test_the_same_reward_with_another_setting_is_another_version():
    """Base scores and remembered ones are found by version: those of factor 1 would be taken for those of factor 2."""
    plain, same, double = (Factor(FactorSettings(*given)) for given in ((), (1.0, 4), (2.0,)))
    assert [one.full_version for one in (plain, same, double)] == ["1", "1", "1+factor=2.0"]
    cache = ScoreCache()
    first, second = (Scorer("factor", reward, cache=cache) for reward in (plain, double))
    assert first(grey([4]), ["a"]).tolist() == [0.5]
    assert second(grey([4]), ["a"]).tolist() == [1.0]


@pytest.fixture
def repeating(monkeypatch):
    """Makes a trainer's pictures grey in a few shades, so that the same ones come again; returns what was asked."""
    asked = []

    def score(self, images, prompts):
        asked.extend((float(image.mean()), prompt) for image, prompt in zip(images, prompts))
        # neighbours leave a trace, as rounding does, so a batch of other company gives other bytes
        return images.mean((1, 2, 3)) + 1e-6 * len(prompts)

    def prepare(trainer, shades=40):
        decode = trainer.policy.decode

        def coarse(latents):
            images = decode(latents)
            return ((images.mean((1, 2, 3), keepdim=True) * shades).round() / shades).expand_as(images).clone()

        trainer.policy.decode = coarse
        return trainer

    monkeypatch.setattr(JpegIncompressibility, "__call__", score)
    return asked, prepare


def test_a_resumed_run_remembers_what_one_that_never_stopped_does(tiny_pipe, tmp_path, repeating):
    asked, prepare = repeating
    resolved = make_resolved(tiny_pipe, "ddpo", **{"budget.images": 32, "schedule.steps": 2})
    whole = prepare(make_trainer(resolved, tmp_path / "whole"))
    whole.train()
    bill = whole.ledger.bill()
    assert len(asked) == len(set(asked)) == bill["reward_calls"] < 32
    assert bill["cached"] == {"jpeg-incompressibility": 32 - bill["reward_calls"]}
    assert any(row["bill"]["cached"] for row in whole.run.log())
    stopped = prepare(make_trainer(resolved, tmp_path / "stopped", checkpoint_every=1))

    def watch(tick):
        if (tick.epoch, tick.phase) == (2, "updating"):
            raise ZeroDivisionError

    stopped.watch = watch
    with pytest.raises(ZeroDivisionError):
        stopped.train()
    resumed = prepare(make_trainer(resolved, tmp_path / "stopped"))
    resumed.train()
    assert (resumed.run.path / "train.jsonl").read_bytes() == (whole.run.path / "train.jsonl").read_bytes()
    for one, other in zip(resumed.updater.parameters.values(), whole.updater.parameters.values()):
        assert torch.equal(one, other)
    path, _ = checkpoint.latest(whole.run)
    assert len(checkpoint.read(path)[1]["cache/scores"]) == bill["reward_calls"]


def test_a_collapsed_policy_does_not_spin_on_a_budget_of_reward_calls(tiny_pipe, tmp_path, repeating):
    asked, prepare = repeating
    settings = {"budget.reward_calls": 100, "schedule.steps": 2, "update.lr": 1e-9}
    trainer = prepare(make_trainer(make_resolved(tiny_pipe, "ddpo", **settings), tmp_path), shades=1)
    trainer.prompts = ["cat"]
    with pytest.raises(RunFailed, match="spent no reward calls.*collapsed"):
        trainer.train()
    assert len(set(asked)) == len(asked) <= 2


def test_the_bill_shows_the_hit_rate():
    ledger = Ledger()
    ledger.charge_reward("hpsv2", 30, cached=10)
    ledger.charge_reward("aesthetic", 40)
    text = bill_text(ledger.bill(), 1)
    assert "40 aesthetic, 30 hpsv2 (+ 10 from the cache, 25.0 %)" in text
    assert ledger.reward_calls == 70


def test_the_report_has_a_column_for_remembered_scores_where_there_are_any():
    def table(*bills):
        runs = [SimpleNamespace(bill=bill, record={}, seconds=60.0, search_bill={}) for bill in bills]
        return bill_table(SimpleNamespace(arms=[SimpleNamespace(label="ddpo", done=runs)]), "bill")

    plain, hit = {"rewards": {"x": 30}}, {"rewards": {"x": 20}, "cached": {"x": 10}}
    keys = [column.key for column in table(plain, hit).columns]
    assert "cached" not in [column.key for column in table(plain).columns]
    assert table(plain, hit).groups[0].rows[0].cells[keys.index("cached")].text == "5"
