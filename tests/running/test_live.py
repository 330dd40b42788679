"""The progress of a run: one bar from the start to the end, within the terminal, and plain lines without one."""

import re

import pytest

from sdpo_bench.running import live as live_module
from sdpo_bench.running.live import Live, trend
from sdpo_bench.system.progress import RunPlan, Tick

# 28 epochs of 100 denoiser calls; a call with its gradient weighs more, so the training has 4,200 units of work.
PLAN = RunPlan("sdpo", epochs=28, denoiser_calls=2800, training=4200.0, tuned=800.0, base=800.0)
LABEL = "sdpo_accumulated on emoji-align+emoji-style*0.5"


@pytest.fixture
def now(monkeypatch):
    """A clock that only the test moves."""
    time = [1000.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: time[0])
    return time


def simulate(live, now, look=lambda: None):
    """A whole run: 28 epochs of 10 s, then both evaluations at 1 and 4 steps, 60 s each."""
    for epoch in range(28):
        metrics = {"reward_mean": 0.1 + 0.01 * epoch, "epoch": epoch} if epoch else {}
        for phase, calls in (("sampling", 0), ("scoring", 40), ("updating", 70), ("updating", 100)):
            now[0] += 2.5
            live.tick(Tick(epoch, 64.0 * epoch, 1792, "images", phase, metrics, 100 * epoch + calls))
            look()
        metrics = {"reward_mean": 0.1 + 0.01 * (epoch + 1), "epoch": epoch + 1}
        live.tick(Tick(epoch + 1, 64.0 * (epoch + 1), 1792, "images", "epoch", metrics, 100 * (epoch + 1)))
        look()
    for subject in ("sdpo", "base"):
        for done, steps in ((0, 1), (40, 1), (100, 4), (300, 4), (500, 4)):
            live.evaluation(f"{subject}, train prompts, {steps} steps", done, 500)
            look()
            now[0] += 12
        live.evaluation(f"{subject}: done", 500, 500)
        look()


@pytest.mark.parametrize("width", [80, 120])
def test_one_bar_moves_from_the_first_epoch_to_the_last_picture(now, width):
    """It never goes back, stands at 100 % only at the end, and keeps bar, elapsed time and ETA in the width."""
    live = Live(LABEL, PLAN)
    seen = []

    def look():
        bar, text = live.lines(width)
        assert len(bar) <= width and len(text) <= width
        share = re.fullmatch(r"\S.* [━─]{9,} +(\d+)%  [\d:]+  ETA (?:[\d:]+|-)", bar).group(1)
        seen.append((int(share), text.strip()))

    simulate(live, now, look)
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares.index(100) >= len(shares) - 2
    # 4,200 of 5,800 units are the training's, 5,000 with the tuned model's evaluation
    assert [share for share, text in seen if "epoch 28 of 28 done" in text] == [72]
    texts = [text for _, text in seen]
    assert "epoch 3 of 28, updating   reward 0.12" in texts
    # .1 + .01 epoch: .35 in epochs 22 to 28, .14 in epochs 1 to 7
    trend = "reward 0.35 in the last 7 epochs (+0.21 since epochs 1 to 7)" if width == 120 else "reward 0.35 (+0.21)"
    assert f"evaluate tuned, train prompts, 4 steps   {trend}" in texts
    assert any(text.startswith("evaluate base, train prompts, 1 steps") for text in texts)


def test_a_long_phase_leaves_the_trend_whole(now):
    """79 columns are what a terminal of 80 has for text."""
    live = Live(LABEL, PLAN)
    for epoch in range(1, 29):
        metrics = {"reward_mean": -1.339 if epoch < 8 else -1.333, "epoch": epoch}
        live.tick(Tick(epoch, 64.0 * epoch, 1792, "images", "epoch", metrics, 100 * epoch))
    live.evaluation("base, validation prompts, 16 steps", 0, 500)
    assert live.lines(79)[1] == "  evaluate base, validation prompts, 16 steps   reward -1.333 (+0.006)"


def test_the_mix_of_prompts_of_one_epoch_is_no_trend():
    """By hand: epochs of .0 and .2 in turn rise by nothing, and from the first to the last by .2."""
    by_turns = dict(enumerate([0.0, 0.2] * 8, 1))
    assert trend(by_turns) == "reward 0.1 in the last 4 epochs (+0 since epochs 1 to 4)"
    assert trend(by_turns, short=True) == "reward 0.1 (+0)"
    resumed = dict(enumerate([0.0] * 30 + [0.3] * 10, 21))
    assert trend(resumed) == "reward 0.3 in the last 10 epochs (+0.3 since epochs 21 to 30)"
    assert (trend({1: 0.1, 2: 0.3}), trend({})) == ("reward 0.3", "")


def test_a_second_process_takes_the_base_model_and_half_of_the_rest(now):
    live = Live(LABEL, PLAN)
    live.second_process()
    live.tick(Tick(28, 1792, 1792, "images", "epoch", {}, 2800))
    assert live.share == pytest.approx(4200 / 4600)


def test_a_budget_of_seconds_counts_the_clock(now):
    """Half of 100 s are used, with 300 calls: the training will be 600 units beside the 200 of the evaluations."""
    live = Live("x", RunPlan("sdpo", 0, 0, 0.0, tuned=100.0, base=100.0))
    live.tick(Tick(4, 50.0, 100.0, "seconds", "epoch", {"reward_mean": 1.0, "epoch": 4}, 300))
    assert live.share == pytest.approx(300 / 800)
    assert live.phase() == "epoch 4 done"


def test_the_time_left_is_that_of_the_speed_so_far(now):
    """A resumed run starts at its checkpoint: what was done before says nothing about the speed."""
    live = Live("x", RunPlan("sdpo", 28, 2800, 2800.0, 0.0, 0.0))
    live.tick(Tick(14, 896, 1792, "images", "sampling", {}, 1400))
    assert live.lines(80)[0].endswith("ETA -")
    now[0] += 30
    live.tick(Tick(15, 960, 1792, "images", "epoch", {}, 1500))
    # 1,300 calls at 100 in 30 s
    assert live.lines(80)[0].endswith("ETA 6:30")
    now[0] += 20
    assert live.lines(80)[0].endswith("ETA 6:10")


def test_without_a_terminal_there_are_plain_lines_with_time_and_no_flood(now, capsys):
    """A line at the start, at each 5 %, at each change of phase and at the end, though there are 161 reports."""
    with Live(LABEL, PLAN) as live:
        simulate(live, now)
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] ", line) for line in lines)
    assert "epoch 1 of 28, sampling" in lines[0]
    assert lines[-1].endswith(
        f"{LABEL}: done in 6:40, 28 epochs, reward 0.35 in the last 7 epochs (+0.21 since epochs 1 to 7)"
    )
    assert sum("evaluate tuned" in line for line in lines) >= 1 and sum("evaluate base" in line for line in lines) >= 1
    assert 18 <= len(lines) <= 28


def test_a_run_of_days_has_lines_ever_further_apart(now, capsys):
    """One report a minute for 3 days within one long stage."""
    with Live("x", RunPlan("sdpo", 10**6, 10**9, 1e9, 0.0, 0.0)) as live:
        for minute in range(3 * 24 * 60):
            now[0] += 60
            live.tick(Tick(1, 1, 10**9, "images", "updating", {}, minute))
    assert 60 <= len(capsys.readouterr().err.splitlines()) <= 180


def test_the_end_says_where_a_run_was_stopped(now, capsys):
    with pytest.raises(KeyboardInterrupt), Live("sdpo on x", PLAN) as live:
        live.tick(Tick(14, 896, 1792, "images", "epoch", {"reward_mean": 0.5, "epoch": 14}, 1400))
        raise KeyboardInterrupt
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("sdpo on x: stopped at 36% after 0:00, 14 epochs, reward 0.5")
    )


def test_a_finished_run_and_a_quiet_one_print_nothing(now, capsys):
    with Live("x", PLAN) as live:
        live.evaluation("sdpo: done", 500, 500)
        live.evaluation("base: done", 500, 500)
    with Live("x", PLAN, quiet=True) as live:
        simulate(live, now)
    assert capsys.readouterr().err == ""
