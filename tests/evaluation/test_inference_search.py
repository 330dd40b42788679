"""Methods that search at inference: what is delivered, what it costs, and that the bill says so."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from factories import SEARCH_METHODS, make_method, make_resolved
from sdpo_bench.cli.entry import main
from sdpo_bench.cli.run_plan import plan
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import run_work
from sdpo_bench.evaluation.evaluate import Subject, evaluate, evaluation_schedule, sample_images
from sdpo_bench.evaluation.inference_search import Candidates
from sdpo_bench.evaluation.score_rows import read_rows
from sdpo_bench.ledger import Ledger
from sdpo_bench.results.read_results import Run, flat_settings
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.make_scorers import make_scorer
from sdpo_bench.settings import EvaluationSettings, Runtime
from sdpo_bench.training.bill_text import read_search, search_bill, search_lines

PAIRS = [("cat", 0), ("cat", 1), ("dog", 0)]


def searched(policy, method, settings, steps=2, seed=0, pairs=PAIRS, micro_batch=64):
    search = Candidates(method, make_scorer("jpeg-incompressibility", {}, "cpu"), seed)
    schedule = evaluation_schedule(policy, settings, steps)
    return search.sample(policy, schedule, settings, pairs, micro_batch), search


@pytest.mark.parametrize("options", [{}, {"noise_bank": 3, "image": "predicted"}])
def test_best_of_n_is_the_best_of_its_own_samples(tiny_policy, options):
    """Drawn one by one: the first is the image that every method starts from, and the highest score is delivered."""
    settings, scorer = EvaluationSettings(steps=(2,), **options), make_scorer("jpeg-incompressibility", {}, "cpu")
    images, search = searched(tiny_policy, make_method("best_of_n", n=4), settings)
    schedule = evaluation_schedule(tiny_policy, settings, 2)
    drawn = []
    for j in range(4):
        noise = search._noise(tiny_policy, schedule, settings, PAIRS, j)
        drawn.append(search._draw(tiny_policy, schedule, settings, ["cat", "cat", "dog"], noise))
    common = sample_images(tiny_policy, schedule, settings, PAIRS)
    assert torch.allclose(drawn[0], common, atol=1e-5)
    scores = torch.stack([scorer(d, ["cat", "cat", "dog"]) for d in drawn])
    best = scores.argmax(0)
    assert len(set(best.tolist())) > 1 or best[0] > 0, "the search chose something"
    assert torch.allclose(images, torch.stack([drawn[j][i] for i, j in enumerate(best.tolist())]), atol=1e-5)


def test_a_random_search_goes_on_from_its_best_candidate(tiny_policy):
    """Step by step: each candidate is a neighbour of the best before it, of its own picture alone."""
    settings, scorer = EvaluationSettings(steps=(2,)), make_scorer("jpeg-incompressibility", {}, "cpu")
    method, prompts = make_method("random_search", n=6, radius=0.5), [prompt for prompt, _ in PAIRS]
    images, search = searched(tiny_policy, method, settings)
    schedule = evaluation_schedule(tiny_policy, settings, 2)
    noise = [search._noise(tiny_policy, schedule, settings, PAIRS, j) for j in range(6)]
    draw = lambda chosen: search._draw(tiny_policy, schedule, settings, prompts, chosen)  # noqa: E731
    best, kept, moves = noise[0].clone(), draw(noise[0]), []
    for fresh in noise[1:]:
        tried = method.propose(best, fresh)
        drawn = draw(tried)
        moves.append((scorer(drawn, prompts) > scorer(kept, prompts)).tolist())
        for i, better in enumerate(moves[-1]):
            if better:
                best[i], kept[i] = tried[i], drawn[i]
    assert {better for move in moves for better in move} == {True, False}, "some steps were taken and some were not"
    assert torch.allclose(images, kept, atol=1e-5)


def test_of_equal_candidates_the_common_picture_is_delivered(tiny_policy, monkeypatch):
    """A reward that tells nothing apart leaves every method with the same pictures."""
    from sdpo_bench.rewards.jpeg_incompressibility import JpegIncompressibility

    monkeypatch.setattr(JpegIncompressibility, "__call__", lambda self, images, prompts: torch.ones(len(prompts)))
    settings = EvaluationSettings(steps=(2,))
    common = sample_images(tiny_policy, evaluation_schedule(tiny_policy, settings, 2), settings, PAIRS)
    assert torch.allclose(searched(tiny_policy, make_method("best_of_n", n=3), settings)[0], common, atol=1e-5)


def test_the_bill_of_a_block_is_that_of_all_processes(tmp_path):
    def spent(ledger, images, latents):
        ledger.images = images
        with ledger.during("search"):
            ledger.charge_call(latents)
        ledger.charge_reward("jpeg-incompressibility", images)
        return ledger

    other = spent(Ledger(), 5, 20)
    several = SimpleNamespace(gather=lambda ledger: [ledger, other], is_main=True)
    search = Candidates(make_method("best_of_n", n=4), make_scorer("jpeg-incompressibility", {}, "cpu"), 0)
    run = RunFolder(tmp_path)
    with search.billed(run, "a block", ["cat"], 2, several):
        spent(search.ledger, 3, 12)
    (block,) = read_search(run.path)["blocks"].values()
    bill = block["bill"]
    assert (bill["images"], bill["forward"], bill["reward_calls"]) == (8, {"search": 32}, 8)


def test_each_set_of_prompts_has_a_cost_of_its_own(tiny_policy, tmp_path):
    """Two files for one split, as by ``eval RUN --unseen A.txt`` and then ``--unseen B.txt``, of as many prompts."""
    judge, run = make_scorer("jpeg-incompressibility", {}, "cpu"), RunFolder(tmp_path)
    search, subject = Candidates(make_method("best_of_n", n=2), judge, 0), Subject(run.run_id, "best_of_n", 0)
    settings, images = EvaluationSettings(steps=(1,), images_per_prompt=1, train="", validation=""), []
    for name, text in (("a", "cat\n"), ("b", "dog\n"), ("a", "cat\n")):
        (tmp_path / f"{name}.txt").write_text(text)
        asked = replace(settings, unseen=str(tmp_path / f"{name}.txt"))
        evaluate(tiny_policy, asked, [judge], run, subject, search=search)
        images.append(search_bill(run.path)["images"])
    assert images == [2, 4, 4]


@pytest.mark.parametrize(("texts", "images"), [(["cat", "dog"], 5), (["cat"], 5 + 24)])
def test_a_cost_without_prompts_is_of_the_set_with_as_many_images(tmp_path, texts, images):
    """Files from before the name of a block said which prompts it had: doing it again replaces such a block."""
    search = Candidates(make_method("best_of_n", n=4), make_scorer("jpeg-incompressibility", {}, "cpu"), 0)
    run = RunFolder(tmp_path)
    earlier = {"a block": {"delivered": 2, "bill": {"images": 24}}}
    (run.path / "search.json").write_text(json.dumps({"samples_per_image": 4, "blocks": earlier}))
    with search.billed(run, "a block", texts, len(texts)):
        search.ledger.images = 5
    assert search_bill(run.path)["images"] == images


@pytest.mark.parametrize("name", SEARCH_METHODS)
def test_more_candidates_never_score_lower(tiny_policy, name):
    """Candidates of a longer search begin with those of a shorter one."""
    settings, scorer = EvaluationSettings(steps=(2,)), make_scorer("jpeg-incompressibility", {}, "cpu")
    base = scorer(sample_images(tiny_policy, evaluation_schedule(tiny_policy, settings, 2), settings, PAIRS), ["x"] * 3)
    for n in (2, 4):
        found = scorer(searched(tiny_policy, make_method(name, n=n), settings)[0], ["x"] * 3)
        assert (found >= base).all()
        base = found


def test_a_known_optimum_is_approached():
    """A reward of the noise alone, -|z - target|^2: hill climbing gets nearer than independent draws."""
    generator = torch.Generator().manual_seed(0)
    target = torch.full((1, 3, 1, 4, 4), 0.3)
    distance = {}
    for name, options in (("best_of_n", {}), ("random_search", {"radius": 0.3})):
        method = make_method(name, n=200, **options)
        best = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
        start = (best - target).square().sum()
        for _ in range(method.candidates - 1):
            tried = method.propose(best, torch.randn(target.shape, generator=generator))
            if (tried - target).square().sum() < (best - target).square().sum():
                best = tried
        distance[name] = float((best - target).square().sum() / start)
    assert distance["random_search"] < 0.5 * distance["best_of_n"] < 0.5


def test_a_neighbour_keeps_the_noise_standard_normal():
    best, fresh = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))
    neighbour = make_method("random_search", radius=0.6).propose(best, fresh)
    assert neighbour.std().item() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(torch.stack([best, neighbour]))[0, 1].item() == pytest.approx(0.8, abs=0.01)


def test_seeds_search_differently_and_micro_batches_do_not(tiny_policy):
    settings, method = EvaluationSettings(steps=(2,)), make_method("best_of_n", n=4)
    images = searched(tiny_policy, method, settings)[0]
    assert torch.allclose(images, searched(tiny_policy, method, settings, micro_batch=2)[0], atol=1e-4)
    assert not torch.allclose(images, searched(tiny_policy, method, settings, seed=1)[0], atol=1e-4)


def test_every_call_is_on_the_bill(tiny_policy, monkeypatch):
    counts = {"rows": 0, "images": 0}
    tiny_policy.denoiser.register_forward_hook(lambda m, i, o: counts.update(rows=counts["rows"] + len(i[0])))
    settings = EvaluationSettings(steps=(3,))
    search = searched(tiny_policy, make_method("best_of_n", n=5), settings, steps=3)[1]
    bill = search.ledger.bill()
    assert bill["forward"] == {"search": counts["rows"]} == {"search": 3 * 5 * 3}
    assert bill["rewards"] == {"jpeg-incompressibility": 3 * 5}
    assert bill["images"] == 3 * 5
    assert tiny_policy.on_call is None


def command(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
        raise SystemExit(0)  # a command may also just return
    assert not stop.value.code


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "two.txt"
    path.write_text("cat\ndog\n")
    return str(path)


def test_a_run_trains_nothing_and_shows_what_it_cost(tiny_pipe, tmp_path, prompts, capsys):
    resolved = make_resolved(
        tiny_pipe, "best_of_n", **{"method.n": 3, "sample.prompts": prompts, "eval.train": prompts, "eval.unseen": ""}
    )
    predicted = plan(resolved)
    assert not any(predicted["cost_per_epoch"].values())
    outcome = run_job(resolved, Runtime(out=tmp_path, device="cpu"))
    rows = read_rows(outcome.run)
    assert outcome.run.state == "done"
    assert outcome.run.log() == []
    assert all(row["difference"] >= 0 for row in outcome.table)
    assert max(row["difference"] for row in outcome.table) > 0
    assert len(rows) == 2 * 2  # two prompts at one and at two steps
    bill = search_bill(outcome.run.path)
    delivered = {1: 2, 2: 2}
    assert bill["images"] == 3 * sum(delivered.values()) == predicted["search"]["outside_images"]
    assert bill["forward"] == {"search": 3 * (2 * 1 + 2 * 2)} == {"search": predicted["search"]["outside_forward"]}
    assert bill["reward_calls"] == 12
    assert run_work(resolved).outside_forward == 18
    assert "4 evaluated images, 3 samples for each" in search_lines(outcome.run.path)[0]
    # Doing a block again replaces its bill; a further step count adds its own.
    before = json.dumps(read_search(outcome.run.path))
    (outcome.run.path / "eval.parquet").unlink()
    run_job(resolved, Runtime(out=tmp_path, device="cpu"))
    assert json.dumps(read_search(outcome.run.path)) == before
    command("eval", outcome.run.run_id, "--steps", "1,2,3", "--results", str(tmp_path))
    assert search_bill(outcome.run.path)["images"] == 18
    record = outcome.run.record()
    run = Run(outcome.run, record, flat_settings(record), "done", "")
    assert run.bill["images"] == 18
    capsys.readouterr()
    command("report", "--results", str(tmp_path))
    assert "best_of_n trained nothing" in " ".join(capsys.readouterr().out.split())
    target = tmp_path / "s.png"
    where = ["--results", str(tmp_path), "--out", str(target)]
    command("sample", outcome.run.run_id, "--prompt", "cat", "--steps", "1", *where)
    assert target.stat().st_size > 500


def test_settings_of_training_are_refused():
    for key, value in (("update.lr", 1e-3), ("advantage.gamma", 0.5), ("sample.images_per_epoch", 32)):
        with pytest.raises(UsageError, match="no effect"):
            resolve(Request(method="best-of-n", overrides={key: value}))
    assert resolve(Request(method="best-of-n", overrides={"budget.images": 64, "schedule.steps": 4}))
