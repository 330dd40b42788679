"""Studies: what every one of them promises, their records, and reward prediction against hand-computed numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpo_bench.cli.entry import main
from sdpo_bench.errors import RunFailed, UsageError
from sdpo_bench.plugins.registry import plugins
from sdpo_bench.results.study_findings import banded, line
from sdpo_bench.results.study_record import read_studies, read_study, write_study
from sdpo_bench.scoring.dense_rewards import choose_queries, predicted_rewards
from sdpo_bench.statistics import contrasts
from sdpo_bench.statistics.intervals import crossed_interval
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies.shared import step_rewards as s
from sdpo_bench.studies.shared.contract import StudyRequest, parse_size, variant_of

STUDIES = sorted(plugins("studies"))


def call(*words):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


# -- every study ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_declares_a_question_a_design_and_statistics_before_it_runs(name):
    study = plugins("studies")[name].load()()
    assert study.name == name
    assert study.question.endswith("?")
    design = study.design(StudyRequest())
    facts = dict(design.facts)
    assert "prompts" in facts
    more = {"nft-on-distilled", "dense-rewards", "one-step"}
    assert len(facts["seeds"].split(",")) == (5 if name in more else 3)
    assert len(study.design(StudyRequest(size=4)).facts) == len(facts)
    assert dict(study.design(StudyRequest(size=4)).facts)["seeds"].startswith("0, 1, 2, 3, 4")
    assert any("Holm" in text for text in design.statistics)
    assert design.suites or design.denoiser_calls


def test_sizes_are_names_or_factors():
    assert parse_size("small") == 0.25
    assert parse_size("0.5") == 0.5
    for wrong in ("huge", "0", "-1", "inf", "nan"):
        with pytest.raises(UsageError, match="--size"):
            parse_size(wrong)
    assert StudyRequest(size=0.25).amount(1792, multiple=64) == 448
    assert StudyRequest(size=0.001).amount(1792, least=64, multiple=64) == 64


def test_another_request_never_replaces_a_result():
    requests = [
        StudyRequest(),
        StudyRequest(size=0.25),
        StudyRequest(size=0.3),
        StudyRequest(model="sd-turbo"),
        StudyRequest(seeds=(0, 1)),
        StudyRequest(overrides={"update.lr": 1}),
    ]
    names = [variant_of(request) for request in requests]
    assert len(set(names)) == len(names)
    assert names[:3] == ["default", "small", "x0.3"]


def test_unknown_studies_and_bad_seeds_are_refused(capsys, tmp_path):
    assert call("study", "reward-predictions", "--results", tmp_path) == 2
    assert "Did you mean 'reward-prediction'?" in capsys.readouterr().err
    assert call("study", "reward-prediction", "--seeds", "0,0", "--results", tmp_path) == 2
    assert "--seeds" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- conclusions ---------------------------------------------------------------------------------------------


def constant(value, noise=0.01, seeds=3):
    values = value + noise * np.array([[-1.0, 0, 1, 0], [0, 1, 0, -1], [1, -1, -1, 1]])[:seeds]
    return Matrix(values, tuple(range(seeds)), tuple("abcd"))


def test_a_conclusion_is_chosen_by_the_adjusted_test():
    found = contrasts.family({"up": constant(1), "down": constant(-1), "open": constant(0)})
    assert [found[k].up for k in found] == [True, False, False]
    assert [found[k].down for k in found] == [False, True, False]
    templates = {"down": "{names} falls", "up": "{names} rises", "unclear": "{names} is open"}
    assert contrasts.outcome_sentences(found.values(), templates) == ["down falls", "up rises", "open is open"]
    assert contrasts.outcome_sentences([found["up"]], templates) == ["up rises"]
    assert list(contrasts.family({"gone": None, "up": constant(1)})) == ["up"]
    p = [crossed_interval(m).p_value() for m in (constant(1), constant(-1), constant(0))]
    assert found["open"].adjusted_p == pytest.approx(max(p))
    assert found["up"].adjusted_p == pytest.approx(3 * p[0])  # Holm's first step, family of three


def test_an_interval_without_its_adjusted_p_has_both_in_the_sentence():
    # Gains of 0.2, 0.3, 0.4 by seed: p = .035 alone, .07 in a family of two
    seeds = np.array([0.2, 0.3, 0.4])
    near = Matrix(np.add.outer(seeds, np.zeros(4)), (0, 1, 2), tuple("abcd"))
    found = contrasts.family({"near": near, "open": constant(0)})
    p = crossed_interval(near).p_value()
    low, high = crossed_interval(near).low, crossed_interval(near).high
    assert low > 0 and p < 0.05 < 2 * p
    words = f"near (+0.3, interval [{low:.3g}, {high:.3g}], but adjusted p = {2 * p:.2g})"
    assert contrasts.outcome_sentences(found.values(), {"unclear": "{names}"}) == [f"{words} and open"]
    assert contrasts.family({"near": near})["near"].words == "near"


def test_one_seed_shows_nothing():
    found = contrasts.family({"up": constant(1, seeds=1)})
    assert not found["up"].shown
    assert "nothing can be tested" in contrasts.seed_caution(found.values())[0]
    assert contrasts.listed("abc") == "a, b and c"


def test_lines_leave_out_what_is_not_known():
    assert line("a", [1, 2, 3], [1.0, None, float("nan")]).x == [1]
    known = crossed_interval(constant(1))
    assert list(banded("a", [1, 2], [known, None]).low) == [known.low]
    assert list(banded("a", [1, 2], [known, crossed_interval(constant(1, seeds=1))]).low) == []


# -- reward prediction ---------------------------------------------------------------------------------------


def test_rules_are_what_the_engine_does():
    """The same numbers as ``dense``, which the official fixtures pin down."""
    x0 = torch.randn(40, 7, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double() + 0.5
    truth = torch.randn(40, 7, generator=torch.Generator().manual_seed(1)).double()
    flat = torch.nn.functional.normalize(x0.flatten(2), dim=-1)
    similarity = (flat @ flat.transpose(1, 2)).numpy()
    queries = choose_queries(x0, "predicted")
    assert (s.anchors(similarity) == queries.steps[:, 2].numpy()).all()
    for name, guard in ((s.SDPO, "convex"), (s.OFFICIAL, "official")):
        found, asked = s.rules(7, ())[name](truth.numpy(), similarity)
        wanted = predicted_rewards(queries, truth.gather(1, queries.steps), guard)
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-9)
        assert (asked.sum(1) == 3).all()


def test_simple_rules_by_hand():
    truth = np.array([[0.0, 9.0, 4.0, 9.0, 8.0]])
    similarity = np.ones((1, 5, 5))
    rules = s.rules(5, (4,))
    assert rules["linear, ends (2)"](truth, similarity)[0].tolist() == [[0, 2, 4, 6, 8]]
    assert rules["linear, middle anchor (3)"](truth, similarity)[0].tolist() == [[0, 2, 4, 6, 8]]
    assert rules["similarity, ends (2)"](truth, similarity)[0].tolist() == [[0, 4, 4, 4, 8]]
    assert rules[s.LAST](truth, similarity)[0].tolist() == [[8] * 5]
    assert s.evenly(5, 4).tolist() == [0, 1, 3, 4]
    # Weights 3 : 1 between the ends; a negative similarity counts as none.
    similarity[0, 1, [0, 4]] = 0.75, 0.25
    similarity[0, 2, [0, 4]] = -1.0, 0.5
    assert rules["similarity, ends (2)"](truth, similarity)[0][0, 1:3].tolist() == [2, 8]


def test_accuracy_by_hand():
    truth = np.array([[0.0, 1.0 + k, 2.0] for k in range(10)])
    found = s.accuracy(s.rules(3, ())["linear, ends (2)"], truth, np.ones((10, 3, 3)), np.zeros(10, int), 2.0)
    assert found.queries == 2
    assert found.bias == pytest.approx(-4.5 / 2)  # predicted 1, true 1..10, in units of 2
    assert found.error == pytest.approx(np.arange(10) / 3 / 2)
    assert found.by_step == pytest.approx([0, 4.5 / 2, 0])
    assert np.isnan(found.correlation).all(), "a constant prediction has no rank correlation"


def test_correlation_within_prompts_ignores_what_prompts_explain():
    """Prompt 1's rewards are 100 higher; within each prompt the prediction runs against the truth."""
    prompts = np.repeat([0, 1], 10)
    inner = np.tile(np.arange(10.0), 2)
    truth = np.stack([np.zeros(20), 100 * prompts + inner, np.zeros(20)], 1)
    predicted = np.stack([np.zeros(20), 100 * prompts - inner, np.zeros(20)], 1)
    queried = np.tile([True, False, True], (20, 1))
    found = s.accuracy(lambda *_: (predicted, queried), truth, np.ones((20, 3, 3)), prompts, 1.0)
    assert found.within == pytest.approx(-1)
    assert found.spearman > 0.4


def test_the_cheapest_rule_that_is_good_enough():
    errors = {"a": (3.0, 0.5), "b": (2.0, 0.5), "c": (1.0, 0.6)}
    assert s.cheapest(errors, 0.5) == "b"
    assert s.cheapest(errors, 0.4) == ""


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, tiny_pipe):
    """A reward-prediction study of the smallest pipeline, and the words that made it."""
    out = tmp_path_factory.mktemp("study")
    (out / "two.txt").write_text("cat\ndog\n")
    words = ["study", "reward-prediction", "--size", "tiny", "--model", tiny_pipe, "--reward", "jpeg-incompressibility"]
    words += ["--set", "schedule.steps=5", "--set", f"sample.prompts={out / 'two.txt'}", "--seeds", "0,1"]
    assert call(*words, "--results", out) == 0
    return out, words


def test_a_study_leaves_a_record_that_a_report_shows(predicted, capsys, tmp_path):
    out, _ = predicted
    (record,), problems = read_studies(out)
    assert not problems
    assert record.command.startswith("sdpo-bench study reward-prediction --size tiny --model")
    assert "--results" not in record.command
    assert (out / "studies" / "reward-prediction" / f"{record.variant}.csv").read_text().startswith("section,table")
    for style in ("terminal", "markdown", "html", "json", "csv", "latex"):
        assert call("report", "--results", out, "--format", style, "--out", tmp_path / style) == 0
        text = (tmp_path / style).read_text()
        assert (
            "SDPO's prediction: bias" in text
            or "SDPO&#39;s prediction: bias" in text
            or "SDPO{'}s" in text
            or (style == "csv" and "prediction" in text)
            or style == "terminal"
        )
        if style == "terminal":  # question, conclusion and command only
            assert "SDPO's prediction: bias" not in text
            assert "sdpo-bench study reward-prediction --size tiny" in text and "--format html" in text
        if style not in ("csv", "latex"):
            for sentence in record.findings.conclusion:
                assert sentence[:40].split("'")[0] in text.replace("\\", "")
    page = (tmp_path / "html").read_text()
    assert len(record.findings.plots) == 1 and record.findings.plots[0].name in page


def test_a_study_repeated_gives_the_same_numbers(predicted):
    out, words = predicted
    (before,), _ = read_studies(out)
    assert call(*words, "--results", out) == 0
    (after,), _ = read_studies(out)
    assert replace(after, seconds=0) == replace(before, seconds=0)


def test_a_damaged_record_is_a_notice(predicted, tmp_path, capsys):
    folder = tmp_path / "studies" / "reward-prediction"
    folder.mkdir(parents=True)
    (folder / "default.json").write_text('{"format": 99}')
    good = next((predicted[0] / "studies" / "reward-prediction").glob("*.json"))
    (folder / "small.json").write_text(good.read_text())
    assert call("report", "--results", tmp_path) == 0
    assert "default.json: damaged" in capsys.readouterr().out


def test_a_record_is_not_replaced_by_one_in_which_more_trainings_failed(predicted, tmp_path):
    (record,), _ = read_studies(predicted[0])
    whole = replace(record, runs={"done": 3, "diverged": 1})
    path = write_study(tmp_path, whole, "whole")
    before = path.read_bytes(), path.with_suffix(".csv").read_bytes()
    with pytest.raises(
        RunFailed, match=r"1 of 4 trainings failed, so '.*\.json' is unchanged; there 0 of 4 had failed"
    ):
        write_study(tmp_path, replace(whole, runs={"done": 3, "failed": 1}), "torn")
    assert (path.read_bytes(), path.with_suffix(".csv").read_bytes()) == before
    write_study(tmp_path, replace(whole, runs={"done": 2, "diverged": 2}, seconds=1.0), "other numbers")
    assert read_study(tmp_path, whole.study, whole.variant).seconds == 1.0


def test_a_record_with_failed_trainings_says_so_first(predicted, tmp_path, capsys):
    (record,), _ = read_studies(predicted[0])
    write_study(tmp_path, replace(record, runs={"done": 3, "failed": 1}), "")
    assert call("report", "--results", tmp_path) == 0
    shown = capsys.readouterr().out
    assert shown.index("1 of 4 trainings failed") < shown.index(record.findings.conclusion[0][:30])


def test_a_study_without_a_record_is_a_notice_with_the_resume_command(tmp_path, capsys):
    (tmp_path / "studies" / "update-order" / "runs").mkdir(parents=True)
    assert call("report", "--results", tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "studies/update-order: unfinished" in shown and "sdpo-bench study update-order --results" in shown


def test_a_dry_run_says_what_it_would_cost(capsys, tmp_path):
    assert call("study", "reward-prediction", "--dry-run", "--json", "--results", tmp_path) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["denoiser_calls"] == 3 * 3 * 45 * 2 * (5 + 10 + 20 + 50)
    assert not list(tmp_path.iterdir())
