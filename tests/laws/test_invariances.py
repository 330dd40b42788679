"""Laws that hold whatever the numbers are: invariances, exact ratios, independence of the base model."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import LOSS_METHODS, make_method, make_updater, mostly_slow, random_experience, sample_groups
from sdpo_bench import seeds
from sdpo_bench.advantages.experience import UpdateLog
from sdpo_bench.rollout.base_log_probs import base_statistics
from sdpo_bench.rollout.group_cost import group_cost
from sdpo_bench.rollout.replay_step import unique_rows
from sdpo_bench.rollout.sampling import Noise, replay, rollout
from sdpo_bench.rollout.schedule import gaussian_log_prob
from sdpo_bench.settings import UpdateSettings
from sdpo_bench.training.loss_scale import LossScale
from sdpo_bench.training.update_order import Order, Task, windows
from sdpo_bench.training.updater import Updater

FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(max_examples=100, deadline=None)
EVERY_LOSS = mostly_slow([(name,) for name in LOSS_METHODS], quick=[("sdpo",), ("sparse_dpo",), ("d3po",)])


def reference_of(policy, schedule, trajectories):
    with policy.reference():
        return base_statistics(policy, schedule, trajectories, range(len(trajectories.prompts)), 64)[0]


def leave_the_base_model(policy):
    """So that the KL to it has slopes."""
    with torch.no_grad():
        for parameter in policy.lora_parameters().values():
            parameter += 0.05


def order_of(groups, steps, seed=0):
    rows = [seeds.permutation(steps, seed, "s", g) for g in range(groups)]
    return Order(seeds.permutation(groups, seed, "g"), torch.stack(rows))


# -- sampling ----------------------------------------------------------------------------------------------------


@given(micro_batch=st.integers(1, 9))
@FEW
def test_micro_batches_do_not_change_trajectories(tiny_policy, micro_batch):
    _, whole = sample_groups(tiny_policy)
    _, parts = sample_groups(tiny_policy, micro_batch=micro_batch)
    assert torch.allclose(whole.latents, parts.latents, atol=2e-5)
    assert torch.allclose(whole.log_probs, parts.log_probs, atol=1e-5)


@given(permutation=st.permutations(range(4)))
@FEW
def test_permuting_prompts_permutes_trajectories(tiny_policy, permutation):
    schedule, whole = sample_groups(tiny_policy)
    permuted = rollout(
        tiny_policy,
        schedule,
        [whole.prompts[i] for i in permutation],
        Noise((0, "test")),
        groups=list(permutation),
        members=2,
        shared_noise=True,
    )
    assert torch.allclose(permuted.latents, whole.latents[list(permutation)], atol=2e-5)


def test_a_part_of_an_epoch_is_the_same_part_of_the_whole(tiny_policy):
    """What one of several processes, or an epoch cut by a budget, samples."""
    schedule, whole = sample_groups(tiny_policy)
    part = rollout(
        tiny_policy, schedule, whole.prompts[2:], Noise((0, "test")), groups=[2, 3], members=2, shared_noise=True
    )
    assert torch.allclose(part.latents, whole.latents[2:], atol=2e-5)


def test_pairs_share_their_start_and_nothing_else(tiny_policy):
    _, pairs = sample_groups(tiny_policy)
    assert torch.equal(pairs.latents[:, 0, 0], pairs.latents[:, 1, 0])
    assert torch.equal(pairs.x0[:, 0, 0], pairs.x0[:, 1, 0])
    assert not torch.allclose(pairs.latents[:, 0, 1], pairs.latents[:, 1, 1])
    assert len({row.sum().item() for row in pairs.latents[:, 0, 0]}) == len(pairs.prompts)


def test_members_that_do_not_share_their_start_share_nothing(tiny_policy):
    _, members = sample_groups(tiny_policy, shared_noise=False)
    starts = members.latents[:, :, 0].flatten(0, 1)
    assert len({row.sum().item() for row in starts}) == len(starts) == 8


def test_runs_of_other_step_counts_draw_other_step_noise():
    """Or the scores at several step counts would rest on the same draws."""
    few, many = (Noise((0, "test")).steps((4, 8, 8), [5], 1, steps) for steps in (2, 3))
    assert not torch.allclose(few[0, 0, 0], many[0, 0, 0])


def test_the_shared_first_step_is_computed_once(tiny_policy):
    calls = []
    tiny_policy.on_call = calls.append
    sample_groups(tiny_policy, steps=3, groups=4)
    assert sum(calls) == 4 * (1 + 2 * 2)  # 4 pairs: one shared call, then two steps of two members
    calls.clear()
    sample_groups(tiny_policy, steps=3, groups=4, shared_noise=False)
    assert sum(calls) == 4 * 3 * 2


def test_sharing_the_first_step_changes_no_number(tiny_policy):
    """The same noise, every member's first step computed by itself."""
    schedule, shared = sample_groups(tiny_policy)
    noise, shape = Noise((0, "test")), tiny_policy.latent_shape
    start, steps = noise.initial(shape, range(4), 2, True), noise.steps(shape, range(4), 2, 3)
    alone = replay(tiny_policy, schedule, shared.prompts, start, steps, shared_start=False)
    for name in ("latents", "x0", "log_probs"):
        assert torch.allclose(getattr(alone, name), getattr(shared, name), atol=2e-5), name


@given(side=st.integers(2, 40), scale=st.floats(0.01, 3), seed=st.integers(0, 1000))
@MANY
def test_mean_log_prob_does_not_grow_with_resolution(side, scale, seed):
    """Tiling a latent four times leaves the mean log-density as it is (a sum would grow fourfold)."""
    generator = torch.Generator().manual_seed(seed)
    value, mean = torch.randn(2, 1, 4, side, side, generator=generator).double()
    std = torch.full((1, 1, 1, 1), scale, dtype=torch.float64)
    tile = lambda x: x.repeat(1, 1, 2, 2)  # noqa: E731
    small, large = gaussian_log_prob(value, mean, std), gaussian_log_prob(tile(value), tile(mean), std)
    assert torch.allclose(small, large, rtol=1e-12)


# -- seeds -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_two_draws_of_a_run_share_a_seed(monkeypatch, tiny_pipe, tmp_path):
    """Every seed that three epochs of training ask for is asked for once; two seeds of a run share none."""
    from factories import make_resolved, make_trainer

    original = seeds.seed_for
    used = Counter()

    def watched(*axes):
        used[original(*axes)] += 1
        return original(*axes)

    monkeypatch.setattr(seeds, "seed_for", watched)
    for seed in (0, 1):
        make_trainer(make_resolved(tiny_pipe, seed=seed, **{"budget.images": 24}), tmp_path).train()
    assert len(used) > 2 * 3 * 4 * 4
    assert [s for s, n in used.items() if n > 1] == []


def test_every_seed_begins_with_an_adapter_of_its_own(monkeypatch, tiny_pipe, tmp_path):
    from factories import make_resolved
    from sdpo_bench.running import run_one
    from sdpo_bench.settings import Runtime

    class Asked(Exception):
        pass

    def load(model, *, device, lora_seed):
        raise Asked(lora_seed)

    monkeypatch.setattr(run_one, "load_policy", load)
    drawn = set()
    for seed in (0, 1):
        with pytest.raises(Asked) as asked:
            run_one.run_job(make_resolved(tiny_pipe, seed=seed), Runtime(out=tmp_path, device="cpu"))
        drawn.add(asked.value.args[0])
    assert len(drawn) == 2


@given(
    a=st.lists(st.one_of(st.text(max_size=5), st.integers(0, 99)), max_size=4),
    b=st.lists(st.one_of(st.text(max_size=5), st.integers(0, 99)), max_size=4),
)
@MANY
def test_seeds_differ_where_axes_differ(a, b):
    assert (seeds.seed_for(*a) == seeds.seed_for(*b)) == (a == b)


def test_axes_that_only_look_alike_have_different_seeds():
    assert (
        len({seeds.seed_for("a", 11), seeds.seed_for("a1", 1), seeds.seed_for("a", "11"), seeds.seed_for("a", 1, 1)})
        == 4
    )
    with pytest.raises(TypeError):
        seeds.seed_for(1.0)


# -- updates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_ratio_is_one_before_the_first_update(tiny_policy, name):
    method = make_method(name)
    schedule, trajectories = sample_groups(tiny_policy, members=method.members, shared_noise=method.shared_noise)
    reference = reference_of(tiny_policy, schedule, trajectories) if method.needs_reference else None
    updater = make_updater(tiny_policy, schedule, method)
    log = UpdateLog(3)
    updater.inner_epoch(random_experience(trajectories, reference), order_of(4, 3), log)
    assert log.zero_gap < 1e-5
    assert log.summary()["ratio_mean"] != 1.0, "later minibatches meet a changed policy"


@pytest.mark.parametrize("name", ["sdpo", "sparse_dpo"])  # a loss of single steps, one of whole trajectories
@pytest.mark.parametrize("gap", [0.1, -0.1])
def test_a_ratio_that_is_not_one_is_seen(tiny_policy, name, gap):
    """Log-probabilities stored too low or too high: the ratio is off by exp(gap) - 1 before any update."""
    method = make_method(name)
    schedule, trajectories = sample_groups(tiny_policy)
    reference = reference_of(tiny_policy, schedule, trajectories)
    wrong = replace(trajectories, log_probs=trajectories.log_probs - gap)
    log = UpdateLog(3)
    make_updater(tiny_policy, schedule, method).inner_epoch(random_experience(wrong, reference), order_of(4, 3), log)
    assert log.summary()["ratio_at_zero_update"] == pytest.approx(abs(math.expm1(gap)), rel=1e-3)


@pytest.mark.parametrize("name", EVERY_LOSS)
@pytest.mark.parametrize("micro_batch", [3])
def test_micro_batches_do_not_change_gradients(tiny_policy, name, micro_batch):
    method = make_method(name)
    schedule, trajectories = sample_groups(tiny_policy, members=method.members, shared_noise=method.shared_noise)
    reference = reference_of(tiny_policy, schedule, trajectories) if method.needs_reference else None
    experience = random_experience(trajectories, reference)
    results = []
    for size in (64, micro_batch):
        updater = make_updater(tiny_policy, schedule, method, minibatch=4, micro_batch=size)
        window = next(iter(windows(order_of(4, 3), updater.settings, method.granularity)))
        for task in window:
            updater._accumulate(experience, [task], UpdateLog(3), fresh=True)
        results.append({n: p.grad.clone() for n, p in updater.parameters.items()})
        updater.optimiser.zero_grad(set_to_none=True)
    for parameter, gradient in results[0].items():
        scale = gradient.abs().max() + 1e-12
        assert (results[1][parameter] - gradient).abs().max() / scale < 1e-3, parameter


@pytest.mark.parametrize(
    ("name", "options"), [("sparse_dpo", {"beta": 2.0}), ("rebel", {}), ("rebel", {"clip_range": 1e-3})]
)
def test_trajectory_gradient_equals_the_direct_one(tiny_policy, name, options):
    """The two-pass gradient of a loss over all steps equals autograd through the whole sum at once."""
    method = make_method(name, **options)
    schedule, trajectories = sample_groups(tiny_policy, groups=2)
    reference = reference_of(tiny_policy, schedule, trajectories)
    experience = random_experience(trajectories, reference)
    updater = make_updater(tiny_policy, schedule, method)
    (task,) = next(iter(windows(order_of(2, 3), updater.settings, "trajectory")))
    updater._accumulate(experience, [task], UpdateLog(3), fresh=True)
    two_pass = {n: p.grad.clone() for n, p in updater.parameters.items()}
    updater.optimiser.zero_grad(set_to_none=True)
    groups = task.groups
    steps = [updater._pass(trajectories, groups, torch.full((2,), i)).log_probs for i in range(3)]
    in_order = type(task)(groups, torch.arange(3).expand(2, -1), 1.0)
    method.loss(updater._minibatch(experience, in_order, {"log_probs": torch.stack(steps, -1)})).value.backward()
    for name, parameter in updater.parameters.items():
        # The two passes call the denoiser in other batches, so small elements differ by the rounding of large ones.
        atol = 1e-8 + 1e-4 * parameter.grad.abs().max()
        assert torch.allclose(parameter.grad, two_pass[name], rtol=1e-4, atol=atol), name


@pytest.mark.parametrize("granularity", ["step", "trajectory"])
def test_kl_to_the_base_model_has_the_value_and_the_gradient(tiny_policy, granularity):
    """A loss of the KL alone: its value is that of the sampled trajectories, and following it shrinks the KL."""
    from sdpo_bench.api import Loss, Method

    class Anchored(Method):
        """Pull to the base model."""

        needs_kl = True

        def loss(self, batch):
            return Loss(batch.kl.sum(-1).mean())

    Anchored.granularity = granularity
    schedule, trajectories = sample_groups(tiny_policy, members=1, shared_noise=False)
    with tiny_policy.reference():
        _, kl = base_statistics(tiny_policy, schedule, trajectories, range(4), 64)
    updater = make_updater(tiny_policy, schedule, Anchored(None), minibatch=4, lr=3e-3)
    log = UpdateLog(3)
    updater.inner_epoch(random_experience(trajectories), order_of(4, 3), log)
    scale = 3 if granularity == "step" else 1  # a step's loss is averaged over the steps
    assert log.summary()["loss"] * scale == pytest.approx(float(kl.sum(-1).mean()), rel=1e-4)
    assert updater.ledger.forward["reference"] == 4 * 3 * (1 if granularity == "step" else 2)
    for _ in range(5):
        again = UpdateLog(3)
        updater.inner_epoch(random_experience(trajectories), order_of(4, 3), again)
    assert again.summary()["loss"] < 0.7 * log.summary()["loss"]


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_only_the_adapter_learns_and_base_stays_base(tiny_policy, name):
    method = make_method(name)
    frozen = {n: p.detach().clone() for n, p in tiny_policy.denoiser.named_parameters() if "lora_" not in n}
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([999, 499])
    conditioning = tiny_policy.encode(["cat", "dog"])
    with tiny_policy.reference():
        before = tiny_policy.predict(latents, times, conditioning)
    schedule, trajectories = sample_groups(tiny_policy, members=method.members, shared_noise=method.shared_noise)
    reference = reference_of(tiny_policy, schedule, trajectories) if method.needs_reference else None
    updater = make_updater(tiny_policy, schedule, method, lr=1e-2)
    adapter = {n: p.detach().clone() for n, p in updater.parameters.items()}
    updater.inner_epoch(random_experience(trajectories, reference), order_of(4, 3), UpdateLog(3))
    assert all(torch.equal(p, frozen[n]) for n, p in tiny_policy.denoiser.named_parameters() if "lora_" not in n)
    assert all(p.grad is None for n, p in tiny_policy.denoiser.named_parameters() if "lora_" not in n)
    assert any(not torch.equal(p, adapter[n]) for n, p in updater.parameters.items())
    with tiny_policy.reference():
        assert torch.equal(tiny_policy.predict(latents, times, conditioning), before)
    with torch.no_grad():
        assert not torch.allclose(tiny_policy.predict(latents, times, conditioning), before, atol=1e-4)


def test_an_adapter_switched_off_is_the_pipeline_that_was_loaded(tiny_pipe):
    from diffusers import StableDiffusionPipeline

    from sdpo_bench.models.base_model import load_policy
    from sdpo_bench.settings import ModelSettings

    plain = StableDiffusionPipeline.from_pretrained(tiny_pipe, dtype=torch.float32, safety_checker=None)
    policy = load_policy(ModelSettings(name=str(tiny_pipe)), lora_seed=3)
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([999, 499])
    conditioning = policy.encode(["cat", "dog"])
    with torch.no_grad():
        theirs = plain.unet(latents, times, conditioning.positive["encoder_hidden_states"]).sample
    with policy.reference():
        assert torch.equal(policy.predict(latents, times, conditioning), theirs)


def test_a_step_s_weight_scales_its_log_ratios_to_the_sampling_policy_and_to_the_base(tiny_policy):
    """Both of them, so that a loss of their difference sees one policy compared with one base model."""
    method = make_method("sparse_dpo")
    schedule, trajectories = sample_groups(tiny_policy)
    experience = random_experience(trajectories, reference_of(tiny_policy, schedule, trajectories) + 1)
    weights = torch.tensor([0.5, 2.0, 0.0])
    updater = make_updater(tiny_policy, schedule, method, weights=weights)
    groups, steps = torch.tensor([2, 0]), torch.tensor([[1, 2], [0, 1]])
    current = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0))
    batch = updater._minibatch(experience, Task(groups, steps, 1.0), {"log_probs": current})
    for row, (group, pair) in enumerate(zip(groups.tolist(), steps.tolist())):
        for column, step in enumerate(pair):
            old, base = trajectories.log_probs[group, :, step], experience.ref_log_probs[group, :, step]
            assert torch.equal(batch.old_log_probs[row, :, column], old)
            for found, new in ((batch.log_probs, current[row, :, column]), (batch.ref_log_probs, base)):
                assert torch.allclose(found[row, :, column] - old, weights[step] * (new - old), atol=1e-6)


def test_a_step_of_weight_zero_is_not_computed_and_changes_nothing(tiny_policy):
    method = make_method("sdpo")
    schedule, trajectories = sample_groups(tiny_policy)
    experience = random_experience(trajectories)
    weights = torch.tensor([1.0, 1.0, 0.0])
    updater = make_updater(tiny_policy, schedule, method, weights=weights, order="step-shuffled")
    log = UpdateLog(3)
    updater.inner_epoch(experience, order_of(4, 3), log)
    assert updater.ledger.forward["update"] == 4 * (1 + 2)
    assert log.summary()["gradient_share_by_step"][2] == 0


@pytest.mark.parametrize(("slope", "anchored"), [(1, 0), (0, 0), (1, 1), (0, 1)])
def test_a_trajectory_is_trained_and_billed_at_the_steps_with_a_weight(tiny_policy, slope, anchored):
    """Not by whether its loss happens to be flat there, as where every ratio is clipped. A KL that is part of the loss
    is 0 at a step of weight 0, as it is for losses of single steps, which never see such a step; its log-probability
    there is that of sampling, since nothing is computed."""
    from sdpo_bench.api import Loss, Method

    class Sum(Method):
        """Log-probabilities and the KL to the base model."""

        granularity = "trajectory"
        needs_kl = True

        def loss(self, batch):
            penalties.append((batch.kl.detach() > 0).flatten(0, 1).any(0).tolist())
            moved.append((batch.log_probs.detach() != batch.old_log_probs).flatten(0, 1).any(0).tolist())
            return Loss(slope * batch.log_probs.sum() + anchored * batch.kl.sum())

    penalties, moved = [], []
    leave_the_base_model(tiny_policy)
    schedule, trajectories = sample_groups(tiny_policy, members=1, shared_noise=False)
    with torch.no_grad():
        for parameter in tiny_policy.lora_parameters().values():
            parameter.mul_(2)  # now the policy has other log-probabilities than those of sampling
    method, weights = Sum(None), [1.0, 1.0, 0.0]
    updater = make_updater(tiny_policy, schedule, method, weights=torch.tensor(weights), minibatch=4)
    log = UpdateLog(3)
    updater.inner_epoch(random_experience(trajectories), order_of(4, 3), log)
    assert penalties == moved == [[True, True, False]]
    assert updater.ledger.backward == 4 * 2
    twice = {"update": 4 * 2 * 2, "reference": 4 * 2 * 2}  # groups, trained steps, without and with a graph
    assert {phase: updater.ledger.forward[phase] for phase in twice} == twice
    planned = group_cost(method, weights, inner_epochs=1, guided=False)
    assert sum(updater.ledger.forward.values()) == 4 * (planned.forward - 3)  # without the three calls of sampling
    assert float(log.grad_square[2]) == 0


def test_losses_of_steps_and_of_trajectories_leave_the_same_step_out_of_a_penalty(tiny_policy):
    """The same mean KL to the base model as a loss of each step and of whole trajectories: equal gradients."""
    from sdpo_bench.api import Loss, Method

    class Penalty(Method):
        """The KL to the base model."""

        needs_kl = True

        def loss(self, batch):
            return Loss(batch.kl.mean())

    class OfTrajectories(Penalty):
        granularity = "trajectory"

    leave_the_base_model(tiny_policy)
    schedule, trajectories = sample_groups(tiny_policy)
    experience, gradients = random_experience(trajectories), []
    for method in (Penalty(None), OfTrajectories(None)):
        weights = torch.tensor([1.0, 1.0, 0.0])
        updater = make_updater(tiny_policy, schedule, method, weights=weights, minibatch=4, order="accumulated")
        (window,) = windows(order_of(4, 3), replace(updater.settings, accumulation=1), method.granularity)
        updater._accumulate(experience, window, UpdateLog(3), fresh=True)
        gradients.append({name: p.grad.clone() for name, p in updater.parameters.items()})
        updater.optimiser.zero_grad(set_to_none=True)
    assert any(gradient.abs().max() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[1].items():
        assert torch.allclose(gradients[0][name], gradient, rtol=1e-3, atol=1e-7 + 1e-4 * gradient.abs().max()), name


def test_leaving_out_steps_of_weight_zero_changes_no_gradient(tiny_policy, monkeypatch):
    """In a task of four groups, of which some are at the step of weight 0; the others must not count for more."""
    method = make_method("sdpo")
    schedule, trajectories = sample_groups(tiny_policy)
    experience, weights = random_experience(trajectories), torch.tensor([1.0, 1.0, 0.0])
    updater = make_updater(tiny_policy, schedule, method, weights=weights, minibatch=4, order="step-shuffled")
    tasks = [task for (task,) in windows(order_of(4, 3), updater.settings, "step")]
    task = next(t for t in tasks if 0 < int((t.steps == 2).sum()) < 4)
    gradients = []
    for _ in range(2):
        updater._accumulate(experience, [task], UpdateLog(3), fresh=True)
        gradients.append({n: p.grad.clone() for n, p in updater.parameters.items()})
        updater.optimiser.zero_grad(set_to_none=True)
        monkeypatch.setattr(Updater, "_without_idle_steps", lambda self, task: task)
    for name, gradient in gradients[1].items():
        assert torch.allclose(gradients[0][name], gradient, rtol=1e-3, atol=1e-7 + 1e-4 * gradient.abs().max()), name


def test_the_log_of_updates_by_hand():
    """Means over groups, whatever the micro-batches and processes; shares of the squared gradient by step."""
    log, other = UpdateLog(2), UpdateLog(2)
    log.add("loss", torch.tensor(1.0), 3)
    log.add("loss", torch.tensor(5.0), 1)
    other.add("loss", torch.tensor(8.0), 4)
    log.zero_gap, other.zero_gap = 0.1, 0.2
    output = torch.zeros(3, 1, 1, 2, requires_grad=True)
    output.grad = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]).view(3, 1, 1, 2)
    unscaled = SimpleNamespace(scale=LossScale())
    Updater._record_gradient(unscaled, output, torch.tensor([0, 1, 0]), log)
    assert log.summary()["loss"] == 2.0
    assert log.summary()["gradient_share_by_step"] == [round(29 / 30, 6), round(1 / 30, 6)]
    Updater._record_gradient(unscaled, output, torch.tensor([1, 1, 1]), other)
    log.absorb(other)
    assert log.summary()["loss"] == 5.0 and log.summary()["ratio_at_zero_update"] == 0.2
    assert log.summary()["gradient_share_by_step"] == [round(29 / 60, 6), round(31 / 60, 6)]


def test_ratios_are_averaged_and_not_their_logarithms():
    """Log-ratios 0 and ln 2: the mean ratio is 1.5, the estimate of the KL half their mean square."""
    trajectories = SimpleNamespace(log_probs=torch.zeros(1, 2, 3))
    log, task = UpdateLog(3), Task(torch.tensor([0]), torch.tensor([[1]]), 1.0)
    current = torch.tensor([[[0.0], [math.log(2)]]])
    Updater._record_ratio(None, SimpleNamespace(trajectories=trajectories), task, current, log, True)
    assert log.summary()["ratio_mean"] == pytest.approx(1.5)
    assert log.summary()["approx_kl"] == pytest.approx(math.log(2) ** 2 / 4)
    assert log.zero_gap == pytest.approx(1)


@given(
    groups=st.integers(1, 12),
    slots=st.integers(1, 5),
    minibatch=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    order=st.sampled_from(["step-shuffled", "accumulated"]),
)
@MANY
def test_every_sample_is_used_once_and_weighs_the_same(groups, slots, minibatch, accumulation, order):
    update = UpdateSettings(order=order, minibatch=minibatch, accumulation=accumulation)
    plan = list(windows(order_of(groups, slots), update, "step"))
    seen = Counter((int(g), int(s)) for window in plan for t in window for g, s in zip(t.groups, t.steps[:, 0]))
    assert seen == Counter({(g, s): 1 for g in range(groups) for s in range(slots)})
    for window in plan:
        assert sum(task.share for task in window) == pytest.approx(1.0)
        each = {round(task.share / len(task.groups), 12) for task in window}
        assert len(each) == 1
    full = groups % (minibatch * accumulation) == 0
    if full:  # official count: T * B / (batch * accumulation), or B / (batch * accumulation)
        expected = groups // (minibatch * accumulation) * (slots if order == "step-shuffled" else 1)
        assert len(plan) == expected


@given(steps=st.lists(st.integers(0, 4), min_size=1, max_size=6), members=st.integers(1, 4), shared=st.booleans())
@MANY
def test_states_find_their_denoiser_output(steps, members, shared):
    rows, inverse = unique_rows(torch.tensor(steps), members, shared)
    states = [(g, 0 if shared and s == 0 else m) for g, s in enumerate(steps) for m in range(members)]
    computed = [states[row] for row in rows.tolist()]
    assert [computed[i] for i in inverse.tolist()] == states
    assert len(set(computed)) == len(computed)


def test_the_last_draw_reaches_the_sample_and_not_its_predicted_original(tiny_policy):
    """So at one step a reward of the predicted original says nothing of the only draw, and pairs of one start tie."""
    _, trajectories = sample_groups(tiny_policy, steps=1, groups=2, members=2)
    assert torch.equal(trajectories.x0[:, 0], trajectories.x0[:, 1])
    assert (trajectories.latents[:, 0, -1] - trajectories.latents[:, 1, -1]).abs().amax() > 1e-2
    _, longer = sample_groups(tiny_policy, steps=2, groups=2, members=2)
    assert (longer.x0[:, 0, -1] - longer.x0[:, 1, -1]).abs().amax() > 1e-2
