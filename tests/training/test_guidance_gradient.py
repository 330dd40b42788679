"""``update.guidance_gradient``: which branches of a prediction with classifier-free guidance are differentiated.

With u and c the outputs without and with the prompt, a guided prediction is u + g (c - u). ``both`` has the gradient
(1 - g) du + g dc, ``conditional`` (yifan123/flow_grpo ac4c86e, scripts/train_sd3.py:190) has g dc.
"""

import dataclasses

import pytest
import torch

from factories import make_resolved, make_trainer
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import cost_of_group
from sdpo_bench.models.conditioning import Conditioning

KEY = "update.guidance_gradient"
G = 4.5
LATENTS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
TIMES = torch.tensor([900, 500, 100])
SLOPES = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(6))


@pytest.fixture
def guided(tiny_policy):
    """A policy with guidance, and the conditioning of three prompts."""
    tiny_policy.set_guidance(G)
    return tiny_policy, tiny_policy.encode(["a cat", "a dog", "a bee"])


def slope(policy, predict, latents):
    """Output of ``predict``, and the gradients of its product with ``SLOPES``: of the adapter, then of the latents."""
    latents = latents.clone().requires_grad_()
    output = predict(latents)
    inputs = [*policy.lora_parameters().values(), latents]
    return output.detach(), torch.autograd.grad((output * SLOPES).sum(), inputs)


def test_the_gradient_is_that_of_the_conditional_branch_and_the_values_are_the_same(guided):
    policy, conditioning = guided
    found = {}
    for value in ("both", "conditional"):
        policy.guidance_gradient = value
        found[value] = slope(policy, lambda x: policy.predict(x, TIMES, conditioning), LATENTS)
    u, du = slope(policy, lambda x: policy.predict(x, TIMES, Conditioning(conditioning.negative)), LATENTS)
    c, dc = slope(policy, lambda x: policy.predict(x, TIMES, Conditioning(conditioning.positive)), LATENTS)
    assert torch.equal(found["both"][0], found["conditional"][0])
    assert torch.allclose(found["both"][0], u + G * (c - u), atol=1e-4)
    for both, conditional, by_u, by_c in zip(found["both"][1], found["conditional"][1], du, dc):
        scale = 1e-4 * float((G * by_c).abs().max())
        assert torch.allclose(conditional, G * by_c, rtol=0, atol=scale)
        assert torch.allclose(both, (1 - G) * by_u + G * by_c, rtol=0, atol=scale)
    assert max(float((a - b).abs().max()) for a, b in zip(found["both"][1], found["conditional"][1])) > 1e-3


def by_hand(policy):
    """``policy.predict`` as two calls, the unconditional one without a graph."""
    plain = policy.predict

    def predict(latents, timesteps, conditioning):
        if conditioning.negative is None:
            return plain(latents, timesteps, conditioning)
        with torch.no_grad():
            u = plain(latents, timesteps, Conditioning(conditioning.negative))
        c = plain(latents, timesteps, Conditioning(conditioning.positive))
        return u + G * (c - u)

    return predict


def first_moments(trainer):
    """AdamW's first moments after one optimiser step: a tenth of its gradient."""
    trainer.train()
    assert trainer.ledger.optimiser_steps == 1
    return torch.cat([state["exp_avg"].flatten() for state in trainer.updater.optimiser.state.values()])


ONE_UPDATE = {
    "model.guidance_scale": G,
    "sample.images_per_epoch": 8,
    "budget.images": 8,
    "update.order": "accumulated",
    "update.max_grad_norm": 1e9,
}
KINDS = {
    "ddpo": {"update.minibatch": 8},  # log-probabilities of steps
    "nft": {},  # noised samples, beside those of the old policy
    "draft": {"update.minibatch": 8, "method.steps": 2},  # the reward's gradient, through two steps
    "drpo": {},  # final samples
}


@pytest.mark.parametrize("method", KINDS)
def test_every_kind_of_loss_takes_the_unconditional_branch_as_a_constant(tiny_pipe, tmp_path, method):
    """In whole minibatches and in micro-batches, beside an update whose branches are computed by hand."""

    def trainer(name, value, size=64):
        overrides = ONE_UPDATE | KINDS[method] | {KEY: value}
        return make_trainer(make_resolved(tiny_pipe, method, **overrides), tmp_path / name, micro_batch=size)

    hand = trainer("hand", "both")
    hand.policy.predict = by_hand(hand.policy)
    expected = first_moments(hand)
    scale = float(expected.abs().max())
    assert scale > 0
    for size in (64, 4):
        ours = first_moments(trainer(f"ours-{size}", "conditional", size))
        assert torch.allclose(ours, expected, rtol=0, atol=2e-4 * scale), size
    assert float((first_moments(trainer("both", "both")) - expected).abs().max()) > 0.05 * scale


def test_the_bill_is_that_of_both_branches(tiny_pipe, tmp_path):
    """They are rows of one batch, whose backward pass has all rows: eight images of three steps and two branches."""
    resolved = make_resolved(tiny_pipe, "ddpo", **ONE_UPDATE, **KINDS["ddpo"], **{KEY: "conditional"})
    trainer = make_trainer(resolved, tmp_path)
    trainer.train()
    assert trainer.ledger.backward == 8 * 3 * 2 == 8 * cost_of_group(resolved).backward


def test_the_default_is_no_part_of_a_record_and_another_value_is(tiny_pipe):
    guided = {"model.guidance_scale": G}
    plain = make_resolved(tiny_pipe, "grpo", **guided)
    typed = make_resolved(tiny_pipe, "grpo", **guided, **{KEY: "both"})
    other = make_resolved(tiny_pipe, "grpo", **guided, **{KEY: "conditional"})
    assert plain.run_id == typed.run_id != other.run_id
    assert "guidance_gradient" not in typed.record["config"]["update"]
    assert other.record["config"]["update"]["guidance_gradient"] == "conditional"


@pytest.mark.parametrize(
    ("method", "overrides", "reason"),
    [
        ("grpo", {}, "model.guidance_scale = 1 has none"),
        ("dgpo", {"model.guidance_scale": G, "method.guidance": "none"}, "loss leaves guidance out"),
    ],
)
def test_it_is_refused_where_no_branch_could_lose_its_gradient(tiny_pipe, method, overrides, reason):
    with pytest.raises(UsageError, match=f"{reason}: it would have no effect.*--set {KEY}=both"):
        make_resolved(tiny_pipe, method, **overrides, **{KEY: "conditional"})


def test_guidance_that_is_an_input_of_the_denoiser_is_refused():
    overrides = {KEY: "conditional"}
    with pytest.raises(UsageError, match="guidance of this model is an input of its denoiser"):
        resolve(Request(method="grpo", model="lcm-dreamshaper-v7", reward="pickscore", overrides=overrides))


def test_a_model_whose_files_were_not_there_before_is_refused_when_it_is_loaded(tiny_pipe, tmp_path):
    """Such as one from the hub; here the settings change after they were checked."""
    resolved = make_resolved(tiny_pipe, "grpo", **{"model.guidance_scale": G, KEY: "conditional"})
    unguided = dataclasses.replace(resolved.config, model=dataclasses.replace(resolved.config.model, guidance_scale=1))
    with pytest.raises(UsageError, match="guidance of this model is an input of its denoiser"):
        make_trainer(dataclasses.replace(resolved, config=unguided), tmp_path)


def chosen(method="grpo", **overrides):
    return resolve(Request(method=method, model="sd3.5-medium", reward="pickscore", overrides=overrides))


def test_flow_grpos_preset_differentiates_as_its_code_does_where_there_is_guidance():
    """scripts/train_sd3.py:190 at ac4c86e. Without guidance or training it gives way, and the id is that without it."""
    assert chosen().preset == "flow-grpo-sd3.5-medium"
    assert chosen().config.update.guidance_gradient == "conditional"
    unguided = chosen(**{"model.guidance_scale": 1})
    assert unguided.config.update.guidance_gradient == "both"
    assert "model.guidance_scale = 1" in unguided.sources[KEY]
    assert unguided.run_id == chosen(**{"model.guidance_scale": 1, KEY: "both"}).run_id
    assert chosen("best_of_n").config.update.guidance_gradient == "both"
