"""Weighted sums: parts on one scale, measured on the base model, charged and shown by their own names."""

import json

import pytest
import torch
from torch import Tensor

from factories import make_resolved, make_trainer
from sdpo_bench import seeds
from sdpo_bench.advantages.epoch_metrics import correlation, part_metrics
from sdpo_bench.api import NoSettings, Reward
from sdpo_bench.errors import RunFailed, UsageError
from sdpo_bench.estimates.time_estimate import Rates, reward_keys, run_work, seconds
from sdpo_bench.evaluation import reward_scale
from sdpo_bench.evaluation.base_scores import base_folder
from sdpo_bench.evaluation.reward_scale import calibrate
from sdpo_bench.evaluation.score_rows import read_rows
from sdpo_bench.models.base_model import load_policy, scheduler_config
from sdpo_bench.rewards.jpeg_compressibility import JpegCompressibility
from sdpo_bench.rollout.sampling import Noise, sample
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.make_scorers import evaluation_scorers
from sdpo_bench.scoring.scorer import CompositeScorer
from sdpo_bench.scoring.weighted_sum import Basis, Composite, CompositeSettings
from sdpo_bench.settings import ModelSettings, Runtime, ScheduleSettings
from sdpo_bench.training.bill_text import part_correlation, part_lines

SUM = "jpeg-compressibility*-0.5+jpeg-incompressibility*2"
PARTS = ["jpeg-compressibility", "jpeg-incompressibility"]


class Channel(Reward):
    """Mean of one colour channel."""

    version = "1"
    source = "test"

    def __init__(self, channel: int):
        super().__init__(NoSettings())
        self.channel = channel

    def __call__(self, images, prompts):
        return images[:, self.channel].mean((1, 2))


def two_channels(**settings) -> Composite:
    return Composite(CompositeSettings(**settings), "cpu", [("red", 2.0, Channel(0)), ("blue", -1.0, Channel(2))])


def plain_images(*colours) -> Tensor:
    return torch.tensor(colours).view(-1, 3, 1, 1).expand(-1, 3, 4, 4)


def test_the_sum_is_that_of_weighted_z_scores():
    """2 (0.75 - 0.5) / 0.25 - (0.25 - 0.5) / 0.5 = 2 + 0.5; raw: 2 x 0.75 - 0.25 = 1.25."""
    made = two_channels()
    made.statistics = {"red": (0.5, 0.25), "blue": (0.5, 0.5)}
    assert made(plain_images([0.75, 0.0, 0.25], [0.5, 0.0, 0.5]), ["a", "b"]).tolist() == [2.5, 0.0]
    raw = two_channels(standardise="none")
    assert raw(plain_images([0.75, 0.0, 0.25]), ["a"]).tolist() == [1.25]


@pytest.mark.parametrize(("weight", "said"), [(1e39, "NaN or infinite"), (1e20, r"beyond 1e\+18")])
def test_weights_that_overflow_are_refused(weight, said):
    made = Composite(CompositeSettings(standardise="none"), "cpu", [("red", weight, Channel(0))])
    scorer = CompositeScorer("red*w", made)
    with pytest.raises(RunFailed, match=said):
        scorer(plain_images([0.75, 0.0, 0.25]), ["a"])
    with pytest.raises(RunFailed, match=said):
        scorer.differentiable(plain_images([0.75, 0.0, 0.25]).clone().requires_grad_(), ["a"])


def test_a_standardised_sum_without_a_base_model_has_no_numbers():
    with pytest.raises(RuntimeError, match="not been measured"):
        two_channels()(plain_images([0.1, 0.2, 0.3]), ["a"])
    with pytest.raises(UsageError, match="no numbers without a run"):
        two_channels().full_version  # noqa: B018


def test_one_reward_twice_under_one_name_is_refused():
    with pytest.raises(UsageError, match="'red' is in the sum twice"):
        Composite(CompositeSettings(), "cpu", [("red", 1, Channel(0)), ("red", 1, Channel(1))])


def test_correlation_by_hand():
    """(1, 2, 3, 4) and (1, 3, 2, 4): covariance 4 of 5; a part that never varies has none."""
    a, b = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 3, 2, 4])
    assert correlation(a, b) == pytest.approx(0.8)
    assert correlation(a, torch.ones(4)) is None
    found = part_metrics({"x": a.view(2, 2), "y": -b.view(2, 2)})
    assert found["reward_part_correlation"] == {"x|y": pytest.approx(-0.8)}
    assert found["reward_parts"]["y"] == {"mean": -2.5, "std": pytest.approx(1.25**0.5)}
    assert part_metrics({}) == {}


def test_a_conflict_is_named_by_the_weights_too():
    rows = [{"reward_part_correlation": {"a|b": value}} for value in (0.5, None, -0.25)]
    found = part_correlation(rows)
    assert found == {"a|b": {"first": 0.5, "last": -0.25}}
    assert part_lines("a*1+b*2", found)[0].endswith(
        "+0.50 in the first epoch, -0.25 in the last: with these weights they conflict"
    )
    assert not part_lines("a*1+b*-2", found)[0].endswith("conflict")
    assert part_correlation([{}]) == {}


def sum_run(tiny_pipe, method="ddpo", **overrides):
    settings = {"reward.name": SUM, "reward.reference_images": 12, "schedule.steps": 2, "eval.steps": "1"}
    return make_resolved(tiny_pipe, method, **settings | overrides)


def reference(resolved, tmp_path, **options):
    scorers = evaluation_scorers(resolved.config, "cpu")
    policy = load_policy(resolved.config.model, lora_seed=resolved.config.seed)
    return scorers, calibrate(scorers, policy, tmp_path, {}, **options)


def test_statistics_are_those_of_the_base_models_pictures_and_of_nothing_else(tiny_pipe, tmp_path):
    scorers, used = reference(sum_run(tiny_pipe), tmp_path / "a")
    found = used[SUM]
    assert (found["images"], found["denoiser_calls"]) == (12, 24)
    assert found["reward_calls"] == dict.fromkeys(PARTS, 12)
    # one reward is minus the other
    assert found["parts"][PARTS[0]]["mean"] == pytest.approx(-found["parts"][PARTS[1]]["mean"], abs=1e-9)
    assert found["correlation"] == {"|".join(PARTS): pytest.approx(-1)}
    assert scorers[0].reward.statistics[PARTS[1]] == (found["parts"][PARTS[1]]["mean"], found["parts"][PARTS[1]]["std"])
    other = sum_run(tiny_pipe, "sdpo", seed=5, **{"update.lr": 1e-5})
    scorers, again = reference(other, tmp_path / "b")
    assert again == used
    assert scorers[0].reward.full_version == sum_run(tiny_pipe).described.full_version
    steps = sum_run(tiny_pipe, **{"schedule.steps": 3})
    assert steps.described.full_version != sum_run(tiny_pipe).described.full_version


def test_statistics_are_measured_once_for_a_results_folder(tiny_pipe, tmp_path, monkeypatch):
    _, used = reference(sum_run(tiny_pipe), tmp_path)
    monkeypatch.setattr("sdpo_bench.evaluation.reward_scale._measure", lambda *_: pytest.fail("measured again"))
    other = sum_run(tiny_pipe, **{"reward.name": "jpeg-compressibility*3+jpeg-incompressibility*1"})
    assert list(reference(other, tmp_path)[1].values()) == list(used.values())


def test_a_damaged_statistics_file_is_measured_again(tiny_pipe, tmp_path):
    _, used = reference(sum_run(tiny_pipe), tmp_path)
    file = next((tmp_path / "references").iterdir())
    for content in ("{", json.dumps({"id": file.stem, "parts": {}}), file.read_text().replace("0.", "NaN, 0.", 1)):
        file.write_text(content)
        assert reference(sum_run(tiny_pipe), tmp_path)[1] == used


def test_statistics_by_hand():
    """1, 2, 3, 6 have mean 3 and population variance 14 / 4; what differs by less than rounding does not vary."""
    found = reward_scale._statistics("red", torch.tensor([1.0, 2, 3, 6], dtype=torch.float64))
    assert found == {"mean": 3, "std": pytest.approx(3.5**0.5), "min": 1, "max": 6}
    with pytest.raises(UsageError, match="gives all 3 pictures"):
        reward_scale._statistics("red", 5 + torch.tensor([0, 1e-6, 4e-6], dtype=torch.float64))


def test_every_prompt_comes_once_before_any_comes_twice(prompts_file):
    basis = Basis(ModelSettings(), ScheduleSettings(), prompts_file)
    order = seeds.permutation(3, "reward-reference", "prompts").tolist()
    shuffled = [["cat", "dog", "bee"][place] for place in order]
    found = reward_scale._pairs(basis, 7)
    assert found == [(prompt, number) for number in (0, 1, 2) for prompt in shuffled][:7]
    assert shuffled != ["cat", "dog", "bee"], "in an order of its own"


@pytest.mark.parametrize("options", [{"sampler": "ddim", "eta": 0.5}, {"sampler": "lcm"}], ids=str)
def test_what_is_measured_are_samples_of_the_untrained_model_in_the_training_schedule(tiny_pipe, tmp_path, options):
    """Drawn here once more, with an adapter that has learnt something in between."""
    settings = {f"schedule.{key}": value for key, value in options.items()}
    resolved = sum_run(tiny_pipe, **{"reward.reference_images": 7} | settings)
    policy = load_policy(resolved.config.model, lora_seed=0)
    basis = resolved.described.basis
    pairs = reward_scale._pairs(basis, 7)
    schedule = make_schedule(scheduler_config(policy), 2, spacing=basis.schedule.spacing, **options)
    names = [f"{prompt}\n{number}" for prompt, number in pairs]
    with torch.no_grad(), policy.reference():
        final, _ = sample(policy, schedule, [p for p, _ in pairs], Noise(("reward-reference",)), groups=names)
        scores = JpegCompressibility(NoSettings())(policy.decode(final), [p for p, _ in pairs]).double()
    for parameter in policy.lora_parameters().values():
        parameter.data += 0.5
    found = calibrate(evaluation_scorers(resolved.config, "cpu"), policy, tmp_path, {})[SUM]
    assert found["images"] == 7
    part = found["parts"][PARTS[0]]
    assert (part["mean"], part["std"]) == pytest.approx(
        (scores.mean().item(), scores.std(correction=0).item()), rel=1e-3
    )


def test_statistics_of_other_pictures_are_not_used(tiny_pipe, tmp_path):
    """Neither a file's nor those of a record, whoever put them there."""
    scorers, used = reference(sum_run(tiny_pipe), tmp_path)
    file = next((tmp_path / "references").iterdir())
    wrong = json.loads(file.read_text()) | {"id": "of-others"}
    for part in wrong["parts"].values():
        part["mean"] += 9
    policy = load_policy(sum_run(tiny_pipe).config.model, lora_seed=0)
    for recorded in ({}, {SUM: wrong}):
        file.write_text(json.dumps(wrong))
        assert calibrate(scorers, policy, tmp_path, recorded) == used


def test_statistics_are_named_by_all_that_can_change_the_pictures(prompts_file, tmp_path):
    """And by nothing else: not by the weights, nor by the order in which parts were given."""
    other_file = tmp_path / "other.txt"
    other_file.write_text("cat\ndog\nbee\nant\n")

    def made(images=128, weights=(2.0, -1.0), turn=1, prompts=prompts_file, model=None, **schedule):
        basis = Basis(ModelSettings(name="emoji-turbo", **model or {}), ScheduleSettings(**schedule), prompts)
        parts = [("red", weights[0], Channel(0)), ("blue", weights[1], Channel(2))][::turn]
        return Composite(CompositeSettings(reference_images=images), "cpu", parts, basis)

    plain = made()
    assert made(weights=(3.0, 1.0)).reference_id == plain.reference_id
    assert made(weights=(3.0, 1.0)).full_version != plain.full_version
    assert made(turn=-1).full_version == plain.full_version and list(made(turn=-1).parts) == ["blue", "red"]
    changes = [
        {"images": 64},
        {"prompts": str(other_file)},
        {"model": {"guidance_scale": 3.0}},
        {"model": {"precision": "bf16"}},
        {"model": {"resolution": 64}},
        {"model": {"text_tokens": 128}},
        {"model": {"text_tokens": 0}},
        {"steps": 3},
        {"eta": 0.5},
    ]
    assert len({made(**change).reference_id for change in [{}, *changes]}) == 1 + len(changes)


def test_a_sum_has_a_gradient_where_every_part_has_one(monkeypatch):
    made = two_channels()
    for flags, whole in (((False, True), False), ((True, False), False), ((True, True), True)):
        for part, flag in zip(made.parts.values(), flags):
            monkeypatch.setattr(part, "differentiable", flag, raising=False)
        assert made.differentiable is whole


def test_a_part_that_never_varies_is_refused(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(JpegCompressibility, "__call__", lambda self, images, prompts: torch.ones(len(prompts)))
    with pytest.raises(UsageError, match="'jpeg-compressibility' gives all 12 pictures"):
        reference(sum_run(tiny_pipe), tmp_path)


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("cat\ndog\nbee\n")
    return str(path)


def test_a_run_reports_the_sum_and_its_parts(tiny_pipe, tmp_path, prompts_file):
    resolved = sum_run(tiny_pipe, **{"sample.prompts": prompts_file, "eval.train": prompts_file})
    runtime = Runtime(out=tmp_path / "out", device="cpu")
    outcome = run_job(resolved, runtime)
    record = outcome.run.record()
    assert record["config"]["reward"]["name"] == SUM
    assert set(record["reward_reference"]) == {SUM}
    assert record["reward_version"] == f"{SUM}/{resolved.described.full_version}"
    assert all(f"{name}/1*" in record["reward_version"] for name in PARTS)
    bill = outcome.run.log()[-1]["bill"]
    assert bill["rewards"] == dict.fromkeys(PARTS, 16)
    assert bill["reward_calls"] == 32
    assert set(outcome.run.log()[0]["reward_parts"]) == set(PARTS)
    # The sum in the rows is made of the parts in the rows, for the run and its base model alike.
    statistics = record["reward_reference"][SUM]["parts"]
    base = base_folder(resolved.config.model, resolved.config.eval, runtime)
    for folder in (outcome.run, RunFolder(base.path)):
        table = read_rows(folder).pivot_table(index=["prompt", "image"], columns="reward", values="score")
        z = {name: (table[name] - statistics[name]["mean"]) / statistics[name]["std"] for name in PARTS}
        assert (-0.5 * z[PARTS[0]] + 2 * z[PARTS[1]] - table[SUM]).abs().max() < 1e-5
    # Once more: nothing is trained or measured, and what stands in run.json is what counts.
    (tmp_path / "out" / "references").rename(tmp_path / "gone")
    assert run_job(resolved, runtime).table == outcome.table
    assert not (tmp_path / "out" / "references").exists()


def calibrated_trainer(resolved, out, **runtime):
    trainer = make_trainer(resolved, out, **runtime)
    trainer.scorer.reward.basis = resolved.described.basis
    calibrate([trainer.scorer], trainer.policy, out, {})
    return trainer


def test_a_resumed_sum_equals_one_that_never_stopped(tiny_pipe, tmp_path):
    resolved = sum_run(tiny_pipe)
    whole = calibrated_trainer(resolved, tmp_path / "whole")
    whole.train()
    stopped = calibrated_trainer(resolved, tmp_path / "stopped")

    def watch(tick):
        if (tick.epoch, tick.phase) == (1, "updating"):
            raise ZeroDivisionError

    stopped.watch = watch
    with pytest.raises(ZeroDivisionError):
        stopped.train()
    resumed = calibrated_trainer(resolved, tmp_path / "stopped")
    resumed.train()
    assert (resumed.run.path / "train.jsonl").read_bytes() == (whole.run.path / "train.jsonl").read_bytes()


def test_a_budget_of_reward_calls_counts_every_part(tiny_pipe, tmp_path):
    """DDPO asks once an image: two parts make 2 calls an image, so 21 calls allow 10 images."""
    from sdpo_bench.cli.run_plan import plan

    resolved = sum_run(tiny_pipe, **{"budget.reward_calls": 21})
    trainer = calibrated_trainer(resolved, tmp_path)
    trainer.train()
    assert (trainer.ledger.images, trainer.ledger.reward_calls) == (10, 20)
    assert plan(resolved)["cost_per_epoch"]["reward_calls"] == 16
    work = run_work(resolved)
    assert (work.images, work.reward_calls, work.decoded) == (10, 20, 10)
    rates = dict.fromkeys(reward_keys(resolved)[0], 1.0)
    assert len(rates) == 2, "a sum is measured by its parts"
    assert seconds(resolved, work, Rates(0, 0, 0, 0, rates)) == 2 * (10 + work.outside_images)
    assert isinstance(trainer.scorer, CompositeScorer)
