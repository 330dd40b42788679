"""Losses on pixels or on the features of the reward's network (``drpo``): values by hand, exact bills, refusals."""

import pytest
import torch

from factories import LOADED, make_method, make_resolved, make_trainer
from sdpo_bench.api import Backprop, Minibatch
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import RunFailed, UsageError
from sdpo_bench.estimates.time_estimate import cost_of_group, epoch_work
from sdpo_bench.ledger import Ledger
from sdpo_bench.rewards.emoji_align import EmojiAlign
from sdpo_bench.scoring.emoji_scorer import load_scorer
from sdpo_bench.scoring.sample_features import sample_features
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.training.bill_text import bill_text


def trainer_of(tiny_pipe, out, kind, **overrides):
    settings = {"method.features": kind, "reward.name": "emoji-align", "budget.images": 8} | overrides
    resolved = make_resolved(tiny_pipe, "drpo", **settings)
    return resolved, make_trainer(resolved, out)


def test_drift_in_a_space_of_one_feature_by_hand():
    """Two samples at 0 and 1, the first is the better one, so it attracts and the second repels.

    Targets are (0, 1, negative 1, positive 0) with weights (1, 1, 2, 2). Distances of the first sample are
    (d, 1, 1, d), of the second (1, d, d, 1), d = 1e-4; their weighted mean is (1/8)(3 + 3 + 6 d) / 1.5 = 1/2 + d / 2.
    Each pull is normalised, so one radius gives a mean squared force of 1, and that is the loss. The first sample has
    nothing to go to but away from 1, the second is drawn to 0: both gradients push to the left of where they are, or
    leave it: descent moves the second one down.
    """
    method = make_method(
        "drpo", group_size=2, anchors=1, anchor_weight=2.0, radii=(1.0,), reference_weight=0.0, features="scorer"
    )
    samples = torch.tensor([[[0.0], [1.0]]], requires_grad=True)
    loss = method.loss(drpo_batch(torch.tensor([[5.0, 3.0]]), samples)).value
    (slope,) = torch.autograd.grad(loss, samples)
    assert loss.item() == pytest.approx(1, rel=1e-5)
    first, second = slope.flatten().tolist()
    force = pulls_by_hand()
    unit = 0.5 + 0.5e-4
    # d/dx of ((x - target) / unit)^2 averaged over two samples: -force / unit each.
    assert first == pytest.approx(-force[0] / unit, rel=1e-3)
    assert second == pytest.approx(-force[1] / unit, rel=1e-3)
    assert second > 0


def drpo_batch(rewards, samples, reference=None):
    none = torch.zeros(*rewards.shape, 0)
    steps = torch.zeros(len(rewards), 0, dtype=torch.int64)
    return Minibatch(none, none, None, None, none, rewards, steps, 1, samples=samples, ref_samples=reference)


def test_a_group_of_equal_rewards_prefers_no_image():
    """Other methods have advantage 0 there. The drift to the base model's samples stays; other groups are as alone."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2, 4, 3, generator=generator).requires_grad_()
    reference = torch.randn(2, 4, 3, generator=generator)
    rewards = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 3.0, 2.0]])
    plain = make_method("drpo", group_size=4, anchors=2, reference_weight=0.0)
    (slope,) = torch.autograd.grad(plain.loss(drpo_batch(rewards, samples)).value, samples)
    assert not slope[0].any() and slope[1].any()
    (alone,) = torch.autograd.grad(plain.loss(drpo_batch(rewards[1:], samples[1:])).value, samples)
    assert torch.allclose(slope[1], alone[1] / 2)
    held = make_method("drpo", group_size=4, anchors=2)
    (slope,) = torch.autograd.grad(held.loss(drpo_batch(rewards, samples, reference)).value, samples)
    assert slope[0].any()


def test_equal_rewards_are_ranked_in_the_order_of_the_images():
    """Thirty zeros and two ones: the best four are the ones and the first two zeros, the worst the last four."""
    samples = torch.randn(1, 32, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tied = torch.zeros(1, 32)
    tied[0, [9, 20]] = 1.0
    ranked = tied - torch.arange(32) * 1e-3
    method = make_method("drpo", group_size=32, anchors=4, reference_weight=0.0)
    losses = [method.loss(drpo_batch(rewards, samples)).value for rewards in (tied, ranked)]
    assert torch.equal(*losses)


def test_more_anchors_than_half_of_a_group_are_refused(tiny_pipe):
    advice = r"Use --set method.anchors=2, or --set method.group_size=6 or more\."
    with pytest.raises(UsageError, match=rf"method.anchors = 3 best and .* method.group_size = 4\. {advice}"):
        make_resolved(tiny_pipe, "drpo", **{"method.group_size": 4, "method.anchors": 3})
    make_resolved(tiny_pipe, "drpo", **{"method.group_size": 4, "method.anchors": 2})


def pulls_by_hand():
    """The force on samples 0 and 1 as plain arithmetic: kernels sqrt(softmax over targets x softmax over samples)."""
    from math import exp, sqrt

    d, unit = 1e-4, 0.5 + 0.5e-4
    place, weight = [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 2.0, 2.0]
    distance = [[d, 1.0, 1.0, d], [1.0, d, d, 1.0]]
    logit = [[-distance[i][j] / unit - 100 * (i == j) for j in range(4)] for i in range(2)]
    over_targets = [[exp(x) / sum(exp(y) for y in row) for x in row] for row in logit]
    over_samples = [[exp(logit[i][j]) / (exp(logit[0][j]) + exp(logit[1][j])) for j in range(4)] for i in range(2)]
    pulls = []
    for i in range(2):
        kernel = [sqrt(max(over_targets[i][j] * over_samples[i][j], 1e-6)) * weight[j] for j in range(4)]
        attraction, repulsion = kernel[3], sum(kernel[:3])
        towards = attraction * repulsion * (place[3] - i)
        away = sum(-kernel[j] * attraction * (place[j] - i) for j in range(3))
        pulls.append((towards + away) / unit)
    size = sqrt((pulls[0] ** 2 + pulls[1] ** 2) / 2)
    return [pull / size for pull in pulls]


def test_the_features_of_the_embedded_rewards_are_what_their_heads_read():
    scorer = load_scorer("align")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = EmojiAlign(None).features(images)
    assert features.shape == (3, 96)
    expected = (scorer.heads["class"](features) / scorer.class_temperature).log_softmax(1)
    assert torch.equal(expected, scorer(images)["class"])


@pytest.mark.parametrize("kind", ["latent", "pixels", "scorer"])
def test_the_loss_sees_the_features_of_policy_and_base_model(tiny_pipe, tmp_path, monkeypatch, kind):
    """Before the first update both are the same model, so both must be the features of the same sampled latents."""
    _, trainer = trainer_of(tiny_pipe, tmp_path, kind)
    seen, sampled = [], []
    loss, sample = trainer.method.loss, trainer._sample
    monkeypatch.setattr(trainer.method, "loss", lambda batch: seen.append(batch) or loss(batch))
    monkeypatch.setattr(trainer, "_sample", lambda *args: sampled.append(sample(*args)) or sampled[-1])
    trainer.train()
    latents = torch.cat([trajectories.x0[:, :, -1] for trajectories in sampled])  # DrPO's picture
    images = trainer.policy.decode(latents.flatten(0, 1))
    if kind == "latent":
        expected = latents
    elif kind == "pixels":
        expected = images.unflatten(0, latents.shape[:2])
    else:
        expected = load_scorer("align").features(images).unflatten(0, latents.shape[:2])
    found = torch.cat([batch.samples.detach() for batch in seen])
    base = torch.cat([batch.ref_samples for batch in seen])
    assert found.shape == base.shape == expected.shape
    order = [int((base[i] - expected).flatten(1).abs().sum(1).argmin()) for i in range(len(base))]
    assert sorted(order) == list(range(len(expected)))
    for values in (found, base):
        assert torch.allclose(values, expected[order], atol=1e-4)


@pytest.mark.parametrize("reference", [0.2, 0.0])
@pytest.mark.parametrize("kind", ["latent", "pixels", "scorer"])
def test_the_bill_is_exact(tiny_pipe, tmp_path, monkeypatch, kind, reference):
    """Eight images, two passes of updates: 16 images with a gradient, 8 of the base model without one."""
    passes = {"method.reference_weight": reference, "update.inner_epochs": 2}
    resolved, trainer = trainer_of(tiny_pipe, tmp_path, kind, **passes)
    made = {"features": 0}
    features = EmojiAlign.features

    def counted(self, images):
        made["features"] += len(images)
        return features(self, images)

    monkeypatch.setattr(EmojiAlign, "features", counted)
    trainer.train()
    (row,) = trainer.run.log()
    bill, cost = row["bill"], cost_of_group(resolved)
    looked_at = 16 + (8 if reference else 0)
    assert bill["reward_calls"] == 2 * cost.rewards == 8 + (looked_at + 16 if kind == "scorer" else 0)
    assert bill["rewards"] == {"emoji-align": 8 + (looked_at if kind == "scorer" else 0)}
    assert made["features"] == (looked_at if kind == "scorer" else 0)
    decoded = (bill.get("decoded", 0), bill.get("decoded_backward", 0))
    assert decoded == ((looked_at, 16) if kind == "pixels" else (0, 0)) and sum(decoded) == 2 * cost.decoded
    assert ("decoded" in bill) == (kind == "pixels"), "bills of other runs are what they were"
    assert epoch_work(resolved).get("decoder_calls", 0) == sum(decoded)
    assert bill["backward"] == 2 * cost.backward
    assert ("decoder calls" in bill_text(bill, 1.0)) == (kind == "pixels")


@pytest.mark.parametrize("kind", ["pixels", "scorer"])
def test_micro_batches_change_the_gradient_by_rounding_alone(tiny_pipe, tmp_path, kind):
    found = []
    for size in (64, 4):
        settings = {"method.features": kind, "reward.name": "emoji-align", "budget.images": 8}
        resolved = make_resolved(tiny_pipe, "drpo", **settings, **{"update.max_grad_norm": 1e9})
        trainer = make_trainer(resolved, tmp_path / str(size), micro_batch=size)
        trainer.train()
        found.append([state["exp_avg"] for state in trainer.updater.optimiser.state.values()])
    largest = max(float(value.abs().max()) for value in found[0])
    assert largest > 0
    for value, other in zip(*found):
        assert torch.allclose(value, other, rtol=0, atol=1e-3 * largest)


def test_settings_that_take_the_features_away_are_refused():
    """The package of HPS gives scores alone."""
    overrides = {"method.features": "scorer", "reward.backend": "official"}
    with pytest.raises(UsageError, match="'hpsv2' exposes none with these reward settings. Rewards that do: .*hpsv2"):
        resolve(Request(method="drpo", reward="hpsv2", model="emoji-turbo", overrides=overrides))
    resolve(Request(method="drpo", reward="hpsv2", model="emoji-turbo", overrides={"method.features": "scorer"}))


def test_a_reward_without_features_is_refused_with_those_that_have_them(tiny_pipe):
    message = (
        r"drpo compares the features of the reward's network, and 'jpeg-compressibility' exposes none. "
        r"Rewards that do: aesthetic, .*emoji-align, emoji-style, .*. Use --reward NAME, or --set "
        r"method.features=latent or pixels"
    )
    with pytest.raises(UsageError, match=message):
        make_resolved(tiny_pipe, "drpo", **{"method.features": "scorer", "reward.name": "jpeg-compressibility"})
    summed = {"method.features": "scorer", "reward.name": "emoji-align+emoji-style"}
    with pytest.raises(UsageError, match="'emoji-align.*emoji-style.*' exposes none"):
        make_resolved(tiny_pipe, "drpo", **summed)
    make_resolved(tiny_pipe, "drpo", **{"method.features": "pixels", "reward.name": "jpeg-compressibility"})


def test_features_are_part_of_a_run_s_name_and_the_latents_are_not():
    plain, latent, pixels = (
        resolve(Request(method="drpo", overrides=own))
        for own in ({}, {"method.features": "latent"}, {"method.features": "pixels"})
    )
    assert plain.run_id == latent.run_id != pixels.run_id
    assert "features" not in plain.data["method"]["settings"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda images: images, r"returned \(2, 3, 8, 8\); expected a tensor \(2, D\)"),
        (lambda images: images.flatten(1) / 0, "NaN or infinity"),
        (lambda images: images.flatten(1).detach(), "carry no gradient"),
    ],
)
def test_features_that_break_the_contract_end_the_run(tiny_policy, features, message):
    reward = type("Broken", (EmojiAlign,), {"features": lambda self, images: features(images)})(None)
    images = torch.full((2, 3, 8, 8), 0.5, requires_grad=True)
    with pytest.raises(RunFailed, match=message):
        Scorer("broken", reward, Ledger()).features(images)


def test_pixels_without_a_graph_are_charged_once(tiny_policy):
    ledger = Ledger()
    with torch.no_grad():
        sample_features(tiny_policy, None, ledger, torch.zeros(3, *tiny_policy.latent_shape), "pixels")
    assert (ledger.decoded, ledger.decoded_backward) == (3, 0)


@pytest.mark.parametrize(("depth", "window"), [(2, 1), (1, 2), (0, 1)])
def test_a_gradient_through_more_steps_than_there_are_is_refused(tiny_pipe, monkeypatch, depth, window):
    """Before step 0 there is none, and a negative number would count from the last state back."""
    monkeypatch.setattr(LOADED["drpo"], "backprop", lambda self, num_steps: Backprop(depth, window))
    with pytest.raises(
        UsageError, match=f"drpo differentiates {depth} steps, the last of them among the last {window}"
    ):
        make_resolved(tiny_pipe, "drpo", **{"schedule.steps": 1})
