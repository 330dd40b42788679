"""Settings that pay on GPUs: they do what they say on a CPU, change no number where they promise it, and no run id."""

import pytest
import torch

from factories import make_resolved, make_trainer, sample_groups
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import RunFailed, UsageError
from sdpo_bench.models.base_model import load_policy, set_float32_products
from sdpo_bench.settings import ModelSettings

FASTER = {
    "checkpointing": {"gradient_checkpointing": True},
    "channels_last": {"channels_last": True},
}
COMPILED = {"compile": "eager"}


def step(policy):
    """One differentiated denoiser call: its output and the adapter's gradients."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *policy.latent_shape, generator=generator)
    output = policy.predict(latents, torch.tensor([900, 100]), policy.encode(["cat", "dog"]))
    output.square().mean().backward()
    gradients = {name: p.grad for name, p in policy.lora_parameters().items()}
    policy.denoiser.zero_grad()
    return output.detach(), gradients


def warmed(policy):
    """An adapter whose B is not zero, so that every weight has a gradient."""
    generator = torch.Generator().manual_seed(1)
    for name, p in sorted(policy.lora_parameters().items()):
        if "lora_B" in name:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def plain(tiny_pipe):
    return step(warmed(load_policy(ModelSettings(name=str(tiny_pipe)), lora_seed=0)))


@pytest.mark.parametrize("name", FASTER)
def test_faster_and_leaner_gives_the_same_numbers(tiny_pipe, plain, name):
    policy = warmed(load_policy(ModelSettings(name=str(tiny_pipe), **FASTER[name]), lora_seed=0))
    output, gradients = step(policy)
    assert torch.allclose(output, plain[0], atol=1e-5)
    for key, value in plain[1].items():
        assert torch.allclose(gradients[key], value, atol=1e-6, rtol=1e-3), key


def test_it_really_happens(tiny_pipe):
    policy = load_policy(ModelSettings(name=str(tiny_pipe), channels_last=True), lora_seed=0)
    weights = [p for p in policy.denoiser.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    with pytest.raises(UsageError, match="Did you mean 'inductor'"):
        load_policy(ModelSettings(name=str(tiny_pipe), compile="inductr"))


@pytest.mark.slow
def test_a_compiled_unet_gives_the_same_numbers_and_still_has_its_reference(tiny_pipe, plain):
    before = torch._dynamo.utils.counters["frames"]["ok"]
    policy = warmed(load_policy(ModelSettings(name=str(tiny_pipe), **COMPILED), lora_seed=0))
    output, gradients = step(policy)
    assert torch._dynamo.utils.counters["frames"]["ok"] > before
    assert torch.allclose(output, plain[0], atol=1e-5)
    assert all(torch.allclose(gradients[key], value, atol=1e-6, rtol=1e-3) for key, value in plain[1].items())
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with policy.reference():
        base = policy.predict(latents, torch.tensor([900, 100]), policy.encode(["cat", "dog"]))
    fresh = load_policy(ModelSettings(name=str(tiny_pipe)))
    expected = fresh.predict(latents, torch.tensor([900, 100]), fresh.encode(["cat", "dog"]))
    assert torch.allclose(base, expected, atol=1e-5) and not torch.allclose(base, output, atol=1e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("fp16", 4e-3)])
def test_half_precision_keeps_latents_and_log_probs_float32(tiny_pipe, plain, precision, tolerance):
    """The UNet rounds to 8 (bf16) or 11 bits (fp16); what is learnt from does not."""
    policy = warmed(load_policy(ModelSettings(name=str(tiny_pipe), precision=precision), lora_seed=0))
    output, gradients = step(policy)
    error = float((output - plain[0]).norm() / plain[0].norm())
    assert 1e-6 < error < tolerance
    assert all(g.dtype == torch.float32 for g in gradients.values())
    _, trajectories = sample_groups(policy, groups=2)
    assert trajectories.latents.dtype == trajectories.log_probs.dtype == trajectories.x0.dtype == torch.float32
    # The stored state is the drawn one, unrounded: its noise has the density that the log-probability says.
    assert not torch.equal(trajectories.latents, trajectories.latents.to(policy.dtype).float())


def test_tf32_is_a_gpu_mode_and_fp32_rounds_nowhere(tiny_pipe):
    with pytest.raises(UsageError, match="NVIDIA"):
        load_policy(ModelSettings(name=str(tiny_pipe), precision="tf32"))
    try:
        set_float32_products("tf32", "cuda")
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    finally:
        set_float32_products("fp32", "cuda")
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_only_what_changes_numbers_changes_the_run_id(tiny_pipe):
    def run_id(**settings):
        overrides = {f"model.{key}": value for key, value in settings.items()}
        return resolve(Request(model=str(tiny_pipe), reward="jpeg-compressibility", overrides=overrides)).run_id

    assert {run_id(**settings) for settings in (*FASTER.values(), COMPILED)} == {run_id()}
    assert len({run_id(), run_id(precision="tf32"), run_id(precision="bf16")}) == 3


@pytest.mark.slow
def test_rewards_scored_beside_the_decoder_give_the_same_run(tiny_pipe, tmp_path):
    logs = []
    for overlap in (False, True):
        trainer = make_trainer(make_resolved(tiny_pipe), tmp_path / str(overlap), micro_batch=4, async_rewards=overlap)
        trainer.train()
        logs.append((trainer.run.path / "train.jsonl").read_bytes())
    assert logs[0] == logs[1]


def test_a_reward_that_fails_in_its_thread_fails_the_run(tiny_pipe, tmp_path, monkeypatch):
    trainer = make_trainer(make_resolved(tiny_pipe), tmp_path, micro_batch=4, async_rewards=True)

    def broken(self, images, prompts):
        import threading

        assert threading.current_thread() is not threading.main_thread()
        raise ValueError("out of ink")

    monkeypatch.setattr(trainer.scorer.reward.__class__, "__call__", broken)
    with pytest.raises(RunFailed, match="out of ink"):
        trainer.train()


def test_prompts_are_encoded_once_and_before_training(tiny_pipe, tmp_path):
    trainer = make_trainer(make_resolved(tiny_pipe), tmp_path)
    calls = []
    trainer.policy.pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(trainer.epoch))
    phases = []
    trainer.watch = lambda tick: phases.append((tick.phase, len(calls)))
    trainer.train()
    assert phases[0] == ("sampling", len(trainer.prompts)) and len(calls) == len(trainer.prompts)
