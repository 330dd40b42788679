"""Losses of likelihood-free methods against official numbers (tests/fixtures/flow; tables and commits in its README).

DiffusionNFT: NVlabs/DiffusionNFT 24af555; AWM and DGPO: X-GenGroup/Flow-Factory a0b2bc5; DrPO: UGVly/DrPO dd473d8.
Another set of the same layout can be named by SDPO_BENCH_FLOW_FIXTURES.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo_bench.api import Minibatch, Noised
from sdpo_bench.methods._drift import drift_loss
from sdpo_bench.methods._noised_groups import velocity_error
from sdpo_bench.methods.awm import AWM, AWMSettings, surrogate
from sdpo_bench.methods.dgpo import DGPO, DGPOSettings
from sdpo_bench.methods.drpo import DrPO, DrPOSettings
from sdpo_bench.methods.nft import NFT, NFTSettings
from sdpo_bench.rollout.trailing_weights import TrailingWeights

FOLDER = Path(os.environ.get("SDPO_BENCH_FLOW_FIXTURES", Path(__file__).parents[1] / "fixtures" / "flow"))
DTYPES = {"f32": torch.float32, "f64": torch.float64}
WEIGHTINGS = {
    "Uniform": "uniform",
    "t": "level",
    "t^2": "level-squared",
    "huber": "huber",
    "ghuber_p0.25": "generalised-huber",
}


@cache
def data(name: str):
    return np.load(FOLDER / f"{name}.npz")


def tensor(name: str, key: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(data(name)[key]).to(dtype)


def prefixes(name: str, ending: str) -> list[str]:
    return [key.removesuffix(ending) for key in data(name).files if key.endswith(ending)]


def minibatch(name: str, dtype: torch.dtype, v: torch.Tensor, *, ref: str, old: str, groups: torch.Tensor):
    """The stored velocities as predicted originals, rows in groups ``[b, G]``; x_t = (1 - t) x0 + t noise."""
    clean, noise = tensor(name, "in/x0", dtype), tensor(name, "in/noise", dtype)
    level = (tensor(name, "in/timesteps", dtype) / 1000).view(-1, 1, 1, 1)
    noisy = (1 - level) * clean + level * noise
    by_group = lambda values: values[groups]  # noqa: E731
    original = lambda velocity: by_group(noisy - level * velocity)  # noqa: E731
    seen = Noised(
        by_group(clean),
        original(v),
        by_group(level),
        original(tensor(name, old, dtype)),
        original(tensor(name, ref, dtype)),
    )
    advantages = by_group(tensor(name, "in/advantages", dtype))[..., None]
    final = advantages[..., 0]
    none, steps = final.new_zeros(*final.shape, 0), torch.zeros(len(groups), 1, dtype=torch.int64)
    return Minibatch(none, none, None, advantages, advantages, final, steps, 1, noised=seen)


def near_slope(slope: torch.Tensor, case: str, tolerance: float) -> None:
    """Compare the gradient to the velocity with the stored one, in units of its largest norm.

    Stored are its norm for each sample and, in some cases, all of it.
    """
    expected = tensor("n_awm_dgpo", f"{case}/dloss_dv_norm")
    near(slope.flatten(1).norm(dim=1) / expected.max(), expected / expected.max(), tolerance)
    if f"{case}/dloss_dv" in data("n_awm_dgpo").files:
        near(slope / expected.max(), tensor("n_awm_dgpo", f"{case}/dloss_dv") / expected.max(), tolerance)


ALONE = torch.arange(8)[:, None]
"""Eight groups of one."""


def near(value: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert torch.allclose(value.double(), expected.double(), rtol=tolerance, atol=tolerance), (value, expected)


@pytest.mark.parametrize("case", [p for p in prefixes("j_nft_loss", "/policy_loss") if "/all/" in p or "/none/" in p])
def test_nft_has_the_official_loss_and_gradient(case):
    kind, beta, clip, _, weight = case.split("/")
    dtype, tolerance = DTYPES[kind], {"f32": 1e-6, "f64": 1e-12}[kind]
    v = tensor("j_nft_loss", "in/v", dtype).requires_grad_()
    settings = NFTSettings(
        beta=float(beta.removeprefix("beta")),
        advantage_range=float(clip.removeprefix("clip")),
        kl_weight=float(weight.removeprefix("kl")),
    )
    loss = NFT(settings).loss(minibatch("j_nft_loss", dtype, v, ref="in/v_ref", old="in/v_old", groups=ALONE))
    expected = tensor("j_nft_loss", f"{case}/total_loss")
    near(loss.value / expected, torch.ones(()), tolerance)
    (slope,) = torch.autograd.grad(loss.value, v)
    if f"{case}/dloss_dv" in data("j_nft_loss").files:
        stored = tensor("j_nft_loss", f"{case}/dloss_dv")
        # Samples 0 and 7 sit at the floor, where gradients are rounding errors of x_t over 1e-5.
        for rows, allowed in [(slice(1, 7), tolerance), (slice(None), {"f32": 1.0, "f64": 1e-9}[kind])]:
            near(slope[rows] / stored[rows].abs().max(), stored[rows] / stored[rows].abs().max(), allowed)


@pytest.mark.parametrize(("kind", "old_policy"), [("type0", "newest"), ("type1", "slow"), ("type2", "late")])
def test_the_old_policy_of_nft_decays_as_in_the_official_code(kind, old_policy):
    method = NFT(NFTSettings(old_policy=old_policy))
    stored = data("j_nft_loss")
    for step, decay in zip(stored["decay/steps"], stored[f"decay/{kind}"]):
        assert method.old_decay(int(step)) == pytest.approx(decay, abs=1e-12)


AWM_CASES = [p for p in prefixes("n_awm_dgpo", "/log_prob") if p.rpartition("/")[2] in WEIGHTINGS]


@pytest.mark.parametrize("case", AWM_CASES)
def test_awm_has_the_official_surrogate_and_loss(case):
    _, kind, scale, weighting = case.split("/")
    dtype, tolerance = DTYPES[kind], {"f32": 1e-5, "f64": 1e-6}[kind]  # official log-probs are float32 in both
    v = tensor("n_awm_dgpo", f"in/v/{scale}", dtype).requires_grad_()
    batch = minibatch("n_awm_dgpo", dtype, v, ref="in/v_ref", old="in/v_old", groups=ALONE)
    error = velocity_error(batch.noised, batch.noised.original)
    now = surrogate(error, batch.noised.level.flatten(1), WEIGHTINGS[weighting])[:, 0]
    near(now, tensor("n_awm_dgpo", f"{case}/log_prob"), tolerance)
    values = slopes = 0
    for name in prefixes("n_awm_dgpo", "/policy_loss"):
        if not name.startswith(f"{case}/clip"):
            continue
        clip, weight, ema = name.removeprefix(f"{case}/").split("/")
        if ema != "ema0":
            continue  # the average is another policy there than that of the ratio; its term is tested alone
        settings = AWMSettings(
            clip_range=float(clip.removeprefix("clip")),
            weighting=WEIGHTINGS[weighting],
            kl_weight=float(weight.removeprefix("kl")),
        )
        # The official code clips advantages to 5, as the engine does before a loss sees them.
        clipped = minibatch("n_awm_dgpo", dtype, v, ref="in/v_ref", old="in/v_old", groups=ALONE)
        object.__setattr__(clipped, "advantages", clipped.advantages.clamp(-5, 5))
        loss = AWM(settings).loss(clipped)
        near(loss.value, tensor("n_awm_dgpo", f"{name}/loss"), tolerance)
        values += 1
        if f"{name}/dloss_dv_norm" in data("n_awm_dgpo").files:
            near_slope(torch.autograd.grad(loss.value, v)[0], name, tolerance)
            slopes += 1
    assert values and slopes


EMA = [p for p in prefixes("n_awm_dgpo", "/ema_kl") if p.startswith("awm/")]


@pytest.mark.parametrize("case", EMA)
def test_awm_has_the_official_second_anchor(case):
    """Its weight times mean |v - v_ema|^2: the loss with it minus the loss without."""
    _, kind, scale, *_, ema = case.split("/")
    dtype, weight = DTYPES[kind], float(ema.removeprefix("ema"))
    v = tensor("n_awm_dgpo", f"in/v/{scale}", dtype).requires_grad_()
    batch = minibatch("n_awm_dgpo", dtype, v, ref="in/v_ref", old="in/v_ema", groups=ALONE)
    value = lambda **own: AWM(AWMSettings(clip_range=0.0, **own)).loss(batch).value.double()  # noqa: E731
    expected = weight * tensor("n_awm_dgpo", f"{case}/ema_kl").mean()
    near(value(old_weight=weight) - value(), expected, {"f32": 1e-5, "f64": 1e-10}[kind])


@pytest.mark.parametrize("method", [AWM(AWMSettings(old_policy="slow")), DGPO(DGPOSettings(old_policy="slow"))])
def test_a_slow_old_policy_decays_as_in_the_official_code(method):
    """From [1, 2] towards [3, -1], at a maximum of 0.3 and a ramp of 0.001 a step."""
    stored = data("n_awm_dgpo")
    for step, expected in zip(stored["ema_ref/steps"], stored["ema_ref/after"]):
        follower = TrailingWeights.of({"w": torch.tensor([1.0, 2.0], dtype=torch.float64)})
        follower.follow({"w": torch.tensor([3.0, -1.0], dtype=torch.float64)}, method.old_decay(int(step)))
        assert follower.weights["w"].tolist() == pytest.approx(expected.tolist(), abs=1e-12)


@pytest.mark.parametrize("case", [p for p in prefixes("n_awm_dgpo", "/dgpo_loss") if "/even/" in p])
def test_dgpo_has_the_official_loss_and_gradient(case):
    _, kind, scale, _, beta, clip, kl_weight, reference = case.split("/")
    dtype, tolerance = DTYPES[kind], {"f32": 1e-5, "f64": 1e-12}[kind]
    groups = torch.tensor(data("n_awm_dgpo")["in/group_even"]).argsort(stable=True).view(2, 4)
    v = tensor("n_awm_dgpo", f"in/v/{scale}", dtype).requires_grad_()
    batch = minibatch("n_awm_dgpo", dtype, v, ref="in/v_ref", old="in/v_old", groups=groups)
    object.__setattr__(batch, "advantages", batch.advantages.clamp(-5, 5))
    clips = "clipdsm1" in clip
    settings = DGPOSettings(
        group_size=4,
        beta=float(beta.removeprefix("beta")),
        clip_range=float(clip.rpartition("_r")[2]) if clips else 0.0,
        reference="old" if reference == "emaref1" else "base",
    )
    loss = DGPO(settings).loss(batch)
    near(loss.value, tensor("n_awm_dgpo", f"{case}/dgpo_loss"), tolerance)
    if kl_weight != "klbeta0":
        return  # the gradient has that of a KL, which is not here
    (slope,) = torch.autograd.grad(loss.value, v)
    near_slope(slope, case, tolerance)
    if clips:
        still = slope.flatten(1).norm(dim=1) == 0
        clipped = torch.tensor(data("n_awm_dgpo")[f"{case}/should_clip"]) | (tensor("n_awm_dgpo", "in/advantages") == 0)
        assert torch.equal(still, clipped)


def test_the_cases_of_dgpo_clip_none_and_most_samples():
    """The value of the loss is the same in all of them, the gradient is not."""
    stored = data("n_awm_dgpo")
    counts = {int(stored[key].sum()) for key in stored.files if key.endswith("/should_clip") and "/even/" in key}
    assert {0, 7} <= counts


@pytest.mark.parametrize("case", [p for p in prefixes("m_drpo", "/laplacian/loss") if not p.endswith("/tensor")])
def test_drpo_has_the_official_drift(case):
    _, name, radii, weight = case.split("/")
    x = tensor("m_drpo", f"in/{name}/generated", torch.float32).requires_grad_()
    positive, negative = (tensor("m_drpo", f"in/{name}/{side}", torch.float32) for side in ("positive", "negative"))
    weights = [float(part) for part in weight.removeprefix("w").split("_")]
    reach = (0.02, 0.05, 0.2) if radii == "three" else (float(radii.removeprefix("r")),)
    loss = drift_loss(x, positive, negative, weights[0], weights[-1], reach)
    # "subset": an anchor equals a generated sample, whose official distance is rounding noise.
    value_tolerance, slope_tolerance = (1e-4, 1e-3) if name == "subset" else (5e-5, 1e-4)
    near(loss, tensor("m_drpo", f"{case}/laplacian/loss"), value_tolerance)
    (slope,) = torch.autograd.grad(loss.sum(), x)
    stored = tensor("m_drpo", f"{case}/laplacian/dloss_dgenerated")
    near(slope / stored.abs().max(), stored / stored.abs().max(), slope_tolerance)


@pytest.mark.parametrize("case", prefixes("m_drpo", "/total"))
def test_drpo_has_the_official_reference_drift(case):
    _, name, radii, _ = case.split("/")
    x = tensor("m_drpo", f"in/{name}/generated", torch.float32)
    reference = tensor("m_drpo", f"in/{name}/reference", torch.float32)
    reach = (0.02, 0.05, 0.2) if radii == "three" else (float(radii.removeprefix("r")),)
    loss = drift_loss(x, reference, x, 3000.0, 3000.0, reach, mask_negative_self=True)
    near(loss, tensor("m_drpo", f"reference/{name}/{radii}/loss"), 1e-4 if name == "subset" else 5e-5)


def test_drpo_has_the_official_loss_of_the_best_and_worst_of_a_group():
    """The set "subset": the 8 best and 8 worst of 16 samples by their scores, and the base model's samples."""
    x = tensor("m_drpo", "in/subset/generated", torch.float32).requires_grad_()
    scores = tensor("m_drpo", "in/subset/scores", torch.float32)[None]
    reference = tensor("m_drpo", "in/subset/reference", torch.float32)
    none = scores.new_zeros(1, 16, 0)
    batch = Minibatch(
        none, none, None, None, none, scores, torch.zeros(1, 0, dtype=torch.int64), 1, samples=x, ref_samples=reference
    )
    loss = DrPO(DrPOSettings()).loss(batch)
    case = "dual/subset/r1e-5/paper"
    near(loss.value, tensor("m_drpo", f"{case}/total"), 1e-4)
    near(loss.metrics["reference_drift"], tensor("m_drpo", f"{case}/ref_loss"), 1e-4)
    (slope,) = torch.autograd.grad(loss.value, x)
    stored = tensor("m_drpo", f"{case}/dtotal_dgenerated")
    near(slope / stored.abs().max(), stored / stored.abs().max(), 1e-3)
