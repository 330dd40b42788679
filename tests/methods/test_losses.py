"""What each method's loss is, in numbers worked out by hand, and that following it leads to a known optimum."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from factories import LOSS_METHODS, make_method, make_resolved, make_trainer
from sdpo_bench.advantages.normalise import Normaliser, advantages
from sdpo_bench.api import Minibatch, Noised
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.registry import find
from sdpo_bench.rollout.schedule import gaussian_kl, make_schedule


def make_batch(log_ratio, *, advantage=None, final=None, kl=None, reference=None, steps=None):
    """A minibatch from nested lists ``[b][G][K]``; ``log_ratio`` is to the sampling policy and to the base alike."""
    ratio = torch.tensor(log_ratio, dtype=torch.float64)
    b, _, k = ratio.shape
    full = lambda values: None if values is None else torch.tensor(values, dtype=torch.float64)  # noqa: E731
    return Minibatch(
        log_probs=(ratio - 1.5).requires_grad_(),
        old_log_probs=torch.full_like(ratio, -1.5),
        ref_log_probs=torch.full_like(ratio, -1.5) if reference else None,
        advantages=full(advantage),
        rewards=torch.zeros_like(ratio),
        final_rewards=full(final) if final else torch.zeros(ratio.shape[:2], dtype=torch.float64),
        steps=torch.arange(k).expand(b, k) if steps is None else torch.tensor(steps),
        num_steps=k,
        kl=full(kl),
    )


def value(name, batch, **settings):
    return make_method(name, **settings).loss(batch).value.item()


# -- losses by hand ----------------------------------------------------------------------------------------------


def test_rebel_by_hand():
    """Sums over steps 0.3 and -0.1, so 0.4 against a difference of advantages of 1.5."""
    batch = make_batch([[[0.2, 0.1], [0.0, -0.1]]], advantage=[[[1.0, 1.0], [-0.5, -0.5]]])
    assert value("rebel", batch) == pytest.approx((0.4 - 1.5) ** 2)
    assert value("rebel", batch, log_scale=0.5) == pytest.approx((0.8 - 1.5) ** 2)
    # Clamped to 0.05: 0.05 + 0.05 and 0 - 0.05, further from 1.5, so this branch counts (PRDP).
    assert value("rebel", batch, clip_range=0.05) == pytest.approx((0.15 - 1.5) ** 2)
    loss = make_method("rebel", clip_range=0.05).loss(batch)
    assert loss.metrics["clip_fraction"] == 1
    (slope,) = torch.autograd.grad(loss.value, batch.log_probs)
    # Only the one step inside the clamp still moves: d/dr_b,0 of (0.15 - 1.5)^2 = -2 (-1.35).
    assert torch.allclose(slope, torch.tensor([[[0.0, 0.0], [2.7, 0.0]]], dtype=torch.float64))


def test_d3po_counts_ratios_to_the_base_model_apart_from_ratios_to_the_old_policy():
    """Ratios to the base model of 1.5 and 1.02, clip range 0.1: half.

    The guard of an epoch's first update reads ``clip_fraction``: the policy is the old one there, not the base model.
    """
    batch = make_batch([[[math.log(1.5)], [math.log(1.02)]]], reference=True, final=[[1.0, 0.0]])
    metrics = make_method("d3po", beta=1.0, clip_range=0.1).loss(batch).metrics
    assert metrics["base_clip_fraction"] == 0.5 and "clip_fraction" not in metrics


def test_dpok_by_hand():
    """A = 2 at a ratio of 1.5 is clipped to 1.2; A = -1 is not: (-2.4 + 1.5) / 2, plus 0.1 of a mean KL of 0.4."""
    batch = make_batch([[[math.log(1.5)]], [[math.log(1.5)]]], advantage=[[[2.0]], [[-1.0]]], kl=[[[0.5]], [[0.3]]])
    assert value("dpok", batch, clip_range=0.2, kl_weight=0.1) == pytest.approx(-0.45 + 0.04)
    assert value("ddpo", batch, clip_range=0.2) == pytest.approx(-0.45)


@pytest.mark.parametrize(("steps", "least", "most", "last"), [(50, 0.0700, 0.566, 10.12), (5, 1.424, 3.626, 189.97)])
def test_dpok_penalises_the_kl_and_not_the_distance_of_noises(steps, least, most, last):
    """Of noises that differ by 1, KL = (d mean / d e)^2 / (2 std^2), by DDIM's eq. 12 and 16; the official code has 1.

    By hand for the last of 50 steps, abar 0.9822 to 0.99915: (0.1344 - 0.0063)^2 / (2 * 0.02847^2) = 10.1.
    """
    schedule = make_schedule({}, steps)
    sample, at = torch.zeros(steps, 1, 1, 1, dtype=torch.float64), torch.arange(steps)
    base, moved = (schedule.denoise(torch.full_like(sample, e), sample, at) for e in (0.0, 1.0))
    kl = gaussian_kl(moved.mean, base.mean, moved.std)
    assert [kl[:-1].min(), kl[:-1].max(), kl[-1]] == pytest.approx([least, most, last], rel=2e-3)


def test_grpo_by_hand():
    batch = make_batch([[[0.0], [math.log(2)]]], advantage=[[[1.0], [-1.0]]], kl=[[[0.2], [0.4]]])
    assert value("grpo", batch, clip_range=0.0, group_size=2) == pytest.approx((-1 + 2) / 2)
    assert value("grpo", batch, clip_range=0.0, group_size=2, kl_weight=0.5) == pytest.approx(0.5 + 0.5 * 0.3)


def test_pso_by_hand():
    """-ln sigmoid(2 ln r) = ln(1 + r^-2) with r = 1.05 / 0.98; a tie costs ln 2 and moves nothing."""
    ratios = [[[math.log(1.05)], [math.log(0.98)]]]
    won = make_batch(ratios, final=[[3.0, 1.0]], reference=True)
    assert value("pso", won, beta=2.0) == pytest.approx(math.log(1 + (0.98 / 1.05) ** 2))
    lost = make_batch(ratios, final=[[1.0, 3.0]], reference=True)
    assert value("pso", lost, beta=2.0) == pytest.approx(math.log(1 + (1.05 / 0.98) ** 2))
    # Clamped to 1 +- 0.02 the ratios are 1.02 and 0.98; without a clamp they stay.
    assert value("pso", won, beta=2.0, clip_range=0.02) == pytest.approx(math.log(1 + (0.98 / 1.02) ** 2))
    assert value("pso", won, beta=2.0, clip_range=0.0) == pytest.approx(math.log(1 + (0.98 / 1.05) ** 2))
    tie = make_batch(ratios, final=[[2.0, 2.0]], reference=True)
    loss = make_method("pso").loss(tie).value
    assert loss.item() == pytest.approx(math.log(2))
    assert not torch.autograd.grad(loss, tie.log_probs)[0].any()


@pytest.mark.parametrize(
    ("name", "settings"), [("d3po", {"clip_range": 9.0}), ("pso", {"clip_range": 0.0}), ("sparse_dpo", {})]
)
def test_preference_losses_say_how_well_they_agree(name, settings):
    """Log-ratios 0.3 and 0.1: two pairs whose first won, one whose second did, a tie: (0.2 + 0.2 - 0.2 + 0) / 4."""
    batch = make_batch([[[0.3], [0.1]]] * 4, final=[[3.0, 1.0], [3.0, 1.0], [1.0, 3.0], [2.0, 2.0]], reference=True)
    metrics = make_method(name, beta=1.0, **settings).loss(batch).metrics
    assert metrics["margin"].item() == pytest.approx(0.05)
    assert metrics["implicit_accuracy"].item() == pytest.approx(0.5), "a tie is no agreement"


@pytest.mark.parametrize("name", ["d3po", "pso"])
def test_rewards_of_steps_decide_the_preference_of_each_step(name):
    """The second image is the better one, and gained less in its second step: of margins 0.2 and 0.1 that one turns."""
    batch = make_batch([[[0.3, 0.2], [0.1, 0.1]]], final=[[1.0, 2.0]], reference=True)
    dense = torch.tensor([[[0.0, 3.0], [1.0, 2.5]]], dtype=torch.float64)
    batch = dataclasses.replace(batch, rewards=dense)
    loss = lambda *margins: sum(math.log(1 + math.exp(-m)) for m in margins) / 2  # noqa: E731
    settings = {"beta": 1.0, "clip_range": 9.0}
    assert value(name, batch, **settings) == pytest.approx(loss(-0.2, -0.1))
    assert value(name, batch, reward="completion", **settings) == pytest.approx(loss(-0.2, 0.1))


def test_tdpo_by_hand():
    """A = 1 against an old value of 0.4: temporal reward 0.6 at ratio 1. The critic went from 0.4 to 0.8; clipped to
    0.5 its error is the larger, (0.5 - 1)^2. The second trajectory's critic has not moved: 0.3^2."""
    batch = dataclasses.replace(
        make_batch([[[0.0]], [[0.0]]], advantage=[[[1.0]], [[-0.5]]]),
        values=torch.tensor([[[0.8]], [[-0.2]]], dtype=torch.float64, requires_grad=True),
        old_values=torch.tensor([[[0.4]], [[-0.2]]], dtype=torch.float64),
    )
    gain, error = -(0.6 - 0.3) / 2, (0.25 + 0.09) / 2
    assert value("tdpo", batch, critic_clip_range=0.1) == pytest.approx(gain + error / 2)
    assert value("tdpo", batch, critic_clip_range=0.0) == pytest.approx(gain + (0.04 + 0.09) / 4)
    loss = make_method("tdpo", critic_clip_range=0.0).loss(batch).value
    to_policy, to_critic = torch.autograd.grad(loss, [batch.log_probs, batch.values])
    assert torch.allclose(to_policy.flatten(), torch.tensor([-0.3, 0.15], dtype=torch.float64))
    assert torch.allclose(to_critic.flatten(), torch.tensor([-0.1, 0.15], dtype=torch.float64))


# -- group-relative advantages -----------------------------------------------------------------------------------


def test_awm_has_the_authors_loss_times_five_at_five_times_their_weights():
    """scxue/advantage_weighted_matching at be51372, train_sd3_awm.py, config/dgx_awm.py: advantages / 5, clip_range 1,
    ema_beta 1, beta 0.003. At level 0.5 the originals 0.1, 0.2 and 0.3 of a clean 0 are velocities that are wrong by
    0.2, 0.4 (old) and 0.6 (base): errors 0.04 and 0.16, distances 0.2 and 0.4."""
    latent = lambda number: torch.full((1, 1, 1, 1, 1), number, dtype=torch.float64)  # noqa: E731
    seen = Noised(latent(0.0), latent(0.1).requires_grad_(), latent(0.5), latent(0.2), latent(0.3))
    batch = dataclasses.replace(make_batch([[[0.0]]], advantage=[[[2.0]]]), noised=seen)
    authors = -2 / 5 * math.exp(0.16 - 0.04) + 1 * 0.2**2 + 0.003 * 0.4**2
    ours = value("awm", batch, weighting="uniform", clip_range=1.0, old_weight=5.0, kl_weight=0.015)
    assert ours == pytest.approx(5 * authors)


def test_group_advantages_by_hand():
    """1, 2, 3, 6 have mean 3 and population variance 3.5; another group of the same prompt stays apart."""
    final = torch.tensor([[1.0, 2.0, 3.0, 6.0], [10.0, 10.0, 10.0, 10.0]])
    rewards = torch.stack([torch.zeros(2, 4), final], -1)
    result = advantages(rewards, ["cat", "cat"], Normaliser("group"), gamma=1.0, clip=5, sparse=True)
    expected = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / 3.5**0.5
    assert torch.allclose(result[0], expected[:, None].expand(-1, 2), atol=1e-5)
    assert not result[1].any(), "equal rewards teach nothing"


def test_dense_group_advantages_compare_step_by_step():
    rewards = torch.tensor([[[0.0, 8.0], [2.0, 4.0]]])
    result = advantages(rewards, ["cat"], Normaliser("group"), gamma=0.0, clip=5, sparse=False)
    assert torch.allclose(result, torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]]), atol=1e-5)


def test_group_advantages_need_a_group():
    with pytest.raises(UsageError, match="samples one"):
        resolve(Request(method="ddpo", overrides={"advantage.normalisation": "group"}))


# -- settings that decide what is sampled --------------------------------------------------------------------------


def test_settings_decide_the_group():
    method = make_method("grpo", group_size=5, shared_noise=False, reward="full")
    assert (method.members, method.shared_noise, method.reward_mode, method.needs_kl) == (5, False, "full", False)
    assert make_method("grpo", kl_weight=0.1).needs_kl


def test_a_preset_gives_way_to_another_group_size_and_the_user_does_not():
    fitted = resolve(Request(method="grpo", overrides={"method.group_size": 64}))  # one group; the preset has 2 x 1
    assert fitted.config.sample.images_per_epoch == 64
    assert (fitted.config.update.minibatch, fitted.config.update.accumulation) == (1, 1)
    assert "fitted" in fitted.sources["update.minibatch"]
    large = resolve(Request(method="grpo", reward="hpsv2")).config  # 32 groups; the preset has 4 x 32 for pairs
    assert (large.update.minibatch, large.update.accumulation) == (4, 8)
    with pytest.raises(UsageError, match="do not divide"):
        resolve(Request(method="grpo", overrides={"update.minibatch": 32}))


# -- named variants ------------------------------------------------------------------------------------------------

VARIANTS = [
    ("sdpo_sparse", {"method.reward": "sparse"}),
    ("sdpo_full", {"method.reward": "full"}),
    ("sdpo_accumulated", {"update.order": "accumulated"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_a_named_variant_is_the_method_with_that_setting(tiny_pipe, tmp_path, name, settings):
    """The same log, byte for byte, and the same settings of the preset for its parent."""
    logs = []
    for method, extra in ((name, {}), ("sdpo", settings)):
        trainer = make_trainer(make_resolved(tiny_pipe, method, **extra), tmp_path / method)
        trainer.train()
        logs.append((trainer.run.path / "train.jsonl").read_bytes())
    assert logs[0] == logs[1]
    ours, theirs = resolve(Request(method=name)).data, resolve(Request(method="sdpo", overrides=settings)).data
    assert ours | {"method": None} == theirs | {"method": None}
    assert ours["method"]["settings"] == theirs["method"]["settings"]
    assert ours["method"]["settings"]["clip_range"] == 1e-3, "the embedded preset's value for sdpo"


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_a_variant_keeps_its_name_s_promise(name, settings):
    ((key, promised),) = settings.items()
    assert resolve(Request(method=name, overrides=settings)).data == resolve(Request(method=name)).data
    other = "step-shuffled" if key == "update.order" else "predicted"
    with pytest.raises(UsageError, match=f"named for {key} = {promised}.*--method sdpo"):
        resolve(Request(method=name, overrides={key: other}))


# -- bandits -----------------------------------------------------------------------------------------------------

TARGET, SPREAD, PIXELS = torch.tensor([0.5, -0.5]), 0.5, 4


def log_density(actions, theta):
    """Mean over the last axis of the log-density of N(theta_i, SPREAD) for actions ``[N, G, T, PIXELS]``."""
    return (-((actions - theta[:, None]) ** 2) / (2 * SPREAD**2)).mean(-1)


def play(name, rounds=100, groups=48, **settings):
    """Two Gaussian steps with means theta; the reward falls with the square distance of each from its target."""
    method = make_method(name, **settings)
    theta, critic = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.Adam([theta, critic], lr=0.03)
    normaliser = Normaliser(method.defaults.get("advantage.normalisation", "per-step-prompt"))
    sparse, generator = method.reward_mode == "sparse", torch.Generator().manual_seed(0)
    finals = []
    for _ in range(rounds):
        noise = torch.randn(groups, method.members, 2, PIXELS, generator=generator)
        actions = (theta[:, None] + SPREAD * noise).detach()
        by_step = -((actions.mean(-1) - TARGET) ** 2)
        final = by_step.sum(-1)
        rewards = torch.stack([torch.zeros_like(final), final], -1) if sparse else by_step
        finals.append(final.mean().item())
        advantage = None
        if method.signal == "advantage":
            gamma = float(sparse or method.granularity == "trajectory")  # a trajectory's return is that of its start
            advantage = advantages(rewards, ["p"] * groups, normaliser, gamma=gamma, clip=5, sparse=sparse)
        old = log_density(actions, theta).detach()
        for steps in [[0, 1]] if method.granularity == "trajectory" else [[0], [1]]:
            now = log_density(actions, theta)[..., steps]
            loss = method.loss(
                Minibatch(
                    log_probs=now,
                    old_log_probs=old[..., steps],
                    ref_log_probs=log_density(actions, torch.zeros(2))[..., steps],
                    advantages=None if advantage is None else advantage[..., steps],
                    rewards=rewards[..., steps],
                    final_rewards=final,
                    steps=torch.tensor(steps).expand(groups, -1),
                    num_steps=2,
                    values=critic[steps].expand(now.shape),
                    old_values=critic.detach()[steps].expand(now.shape),
                    kl=(theta[steps] ** 2 / (2 * SPREAD**2)).expand(now.shape) if method.needs_kl else None,
                )
            )
            loss.value.backward()
        optimiser.step()
        optimiser.zero_grad()
    return theta.detach(), finals


WIDE = {"d3po": {"clip_range": 10.0}, "pso": {"clip_range": 0.0, "beta": 0.1}, "sparse_dpo": {"beta": 0.1}}


@pytest.mark.parametrize("name", LOSS_METHODS)
def test_a_bandit_is_solved(name):
    """Every method moves both steps to where the reward is highest."""
    theta, rewards = play(name, **WIDE.get(name, {}))
    assert (theta - TARGET).abs().max() < 0.2, theta
    assert sum(rewards[-20:]) / 20 > rewards[0] + 0.3


@pytest.mark.parametrize("options", [{"reward": "full"}, {"shared_noise": False, "group_size": 3}])
def test_grpo_s_options_solve_it_too(options):
    assert (play("grpo", **options)[0] - TARGET).abs().max() < 0.2


STEPWISE = [name for name in LOSS_METHODS if len(make_method(name).reward_modes) > 1]


def test_methods_with_a_loss_of_their_steps_take_rewards_of_steps():
    assert set(STEPWISE) == set(LOSS_METHODS) - {"sparse_dpo"}


@pytest.mark.parametrize("name", STEPWISE)
def test_rewards_of_steps_solve_it_too(name):
    assert (play(name, reward="full", **WIDE.get(name, {}))[0] - TARGET).abs().max() < 0.2


@pytest.mark.parametrize("name", ["dpok", "grpo"])
def test_a_heavy_penalty_holds_the_policy_at_the_base_model(name):
    free, held = play(name, kl_weight=1e-4)[0], play(name, kl_weight=20.0)[0]
    assert free.abs().min() > 0.3
    assert held.abs().max() < 0.1


def test_prdp_s_clip_solves_it_too():
    assert (play("rebel", clip_range=0.01)[0] - TARGET).abs().max() < 0.2


def test_method_files_are_short():
    """A method is one file of well under 100 lines, or the plugin contract is at fault."""
    for path in find("methods", "sdpo").path.parent.glob("*.py"):
        assert len(path.read_text().splitlines()) < 100, path.name


def test_reading_a_method_imports_no_torch():
    """Plans and listings ask methods what they need; that must stay quick."""
    script = (
        "import sys\nfrom sdpo_bench.plugins.registry import plugins\n"
        "found = [p.load() for p in plugins('methods').values()]\n"
        "assert len(found) > 10 and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
