"""Memory estimates: sizes from files are those of the loaded networks, measured activations those of a real step."""

import json
from dataclasses import replace

import pytest
import torch

from factories import make_resolved
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import MissingError
from sdpo_bench.estimates import activations, memory_estimate
from sdpo_bench.hashing import canonical_json
from sdpo_bench.models.base_model import load_policy, pipeline_files
from sdpo_bench.models.pipeline_files import published
from sdpo_bench.settings import ModelSettings
from tools.measure_architectures import count
from tools.random_pipeline import SMALL_FLOW, write_pipeline


def traced(folder, **settings):
    model = ModelSettings(name=str(folder), **settings)
    files = pipeline_files(model)
    side = files.family(str(folder)).latent_side(files.configs, model.resolution)
    return activations.trace(canonical_json(activations.make_task(files, model, side)))


def test_parameters_are_counted_without_loading(tiny_pipe):
    policy = load_policy(ModelSettings(name=str(tiny_pipe)), lora_seed=0)
    files = pipeline_files(ModelSettings(name=str(tiny_pipe)))
    for part in ("unet", "vae", "text_encoder"):
        network = getattr(policy.pipeline, part)
        real = sum(p.numel() for name, p in network.named_parameters() if "lora_" not in name)
        assert files.parameters[part] == real, part
    adapter = sum(p.numel() for p in policy.lora_parameters().values())
    assert traced(tiny_pipe)["adapter"] == adapter
    assert traced(tiny_pipe, lora_rank=8)["adapter"] == 2 * adapter


def test_published_sizes():
    """Parameter counts as their authors state them: SD 2.1's UNet 866 M, SDXL's 2,567 M (arXiv 2307.01952: 2.6 B)."""
    assert published("sd-turbo").parameters["unet"] == 865_910_724
    assert published("sdxl-turbo").parameters["unet"] == 2_567_463_684
    # SD 1.5's UNet and the 256 x 320 projection of the guidance embedding
    assert published("lcm-dreamshaper-v7").parameters["unet"] == 859_520_964 + 256 * 320
    assert published("emoji-turbo") is None


def test_published_sizes_of_transformers():
    """As their authors round them: SD3.5 large 8.1 B, FLUX.1 12 B, Z-Image 6 B; the encoder of T5 v1.1 XXL 4.76 B."""
    names = ("sd3.5-large-turbo", "sd3.5-medium", "flux.1-schnell", "z-image-turbo")
    sizes = {name: published(name).parameters for name in names}
    assert sizes["sd3.5-large-turbo"]["transformer"] == 8_056_627_520
    assert sizes["sd3.5-medium"]["transformer"] == 2_243_171_520  # 2.5 B with its position embedding
    assert sizes["flux.1-schnell"]["transformer"] == 11_891_178_560
    assert sizes["z-image-turbo"]["transformer"] == 6_154_908_736
    assert sizes["flux.1-schnell"]["text_encoder_2"] == sizes["sd3.5-large-turbo"]["text_encoder_3"] == 4_762_310_656
    assert published("flux.1-schnell").download_bytes == 2 * sum(sizes["flux.1-schnell"].values())


def test_position_embeddings_of_stable_diffusion_3_are_stored_and_held_in_memory():
    """Files of the transformers on the hub, in half precision: 4.94 GB (medium) and 9.99 + 6.31 GB (large turbo).

    A position embedding has pos_embed_max_size^2 rows of the transformer's width: 384^2 x 1536 and 192^2 x 2432.
    """
    medium, large = published("sd3.5-medium"), published("sd3.5-large-turbo")
    assert medium.buffers == {"transformer": 384**2 * 1536} and large.buffers == {"transformer": 192**2 * 2432}
    assert medium.part_bytes["transformer"] / 1e9 == pytest.approx(4.94, abs=0.005)
    assert large.part_bytes["transformer"] / 1e9 == pytest.approx(9.99 + 6.31, abs=0.01)
    config = resolve(Request(method="grpo", model="sd3.5-medium", reward="jpeg-compressibility")).config
    in_bf16 = 2 * sum(n for part, n in medium.parameters.items() if part != "vae") + 2 * 384**2 * 1536
    assert estimated_weights(config) == in_bf16 + 4 * medium.parameters["vae"]  # force_upcast: float32


def estimated_weights(config):
    return memory_estimate.estimate(config, 1, "cuda").fixed["weights"]


def test_the_tool_counts_what_a_weight_file_holds(tmp_path):
    folder = write_pipeline(SMALL_FLOW["sd3"], tmp_path / "sd3")
    files = pipeline_files(ModelSettings(name=str(folder)))
    parameters, buffers = count({"transformer": files.configs["transformer"]})
    assert parameters["transformer"] + buffers["transformer"] == files.parameters["transformer"]
    network = load_policy(ModelSettings(name=str(folder))).denoiser
    assert parameters["transformer"] == sum(p.numel() for p in network.parameters())


def test_the_tool_counts_what_the_package_ships():
    files = published("sd3.5-medium")
    assert count(files.configs) == (files.parameters, files.buffers)


def saved_bytes(policy, prompt="a cat"):
    """Bytes of the tensors that a real forward pass of one latent keeps for its backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in policy.denoiser.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is used twice
        return tensor

    conditioning = policy.encode([prompt])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = policy.predict(torch.randn(1, *policy.latent_shape), torch.tensor([500]), conditioning)
    assert output.requires_grad
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_measured_activations_are_those_of_a_real_step(tiny_pipe):
    """At the peak a training step holds what the backward pass needs, and a little of the last operations."""
    policy = load_policy(ModelSettings(name=str(tiny_pipe), resolution=64), lora_seed=0)
    real, ours = saved_bytes(policy), traced(tiny_pipe, resolution=64)["training"]
    assert real <= 1.02 * ours and ours <= 1.25 * real, (real, ours)


@pytest.mark.parametrize("shape", sorted(SMALL_FLOW))
def test_measured_activations_of_transformers_are_those_of_a_real_step(shape, tmp_path):
    """The longest prompt is what is measured; the real one is short, but where prompts have lengths of their own."""
    folder = write_pipeline(SMALL_FLOW[shape], tmp_path / shape)
    settings = {"resolution": 64, "lora_targets": ("to_q", "to_k", "to_v", "to_out.0")}
    policy = load_policy(ModelSettings(name=str(folder), **settings), lora_seed=0)
    sizes = traced(folder, **settings)
    assert sizes["adapter"] == sum(p.numel() for p in policy.lora_parameters().values())
    prompt = "z" * (490 if shape in ("qwenimage", "zimage") else 3)
    real = saved_bytes(policy, prompt)
    assert real <= 1.05 * sizes["training"] and sizes["training"] <= 1.6 * real, (real, sizes)


def test_activations_follow_the_resolution_and_shrink_with_checkpointing_and_precision(tiny_pipe):
    at = lambda **s: traced(tiny_pipe, **s)  # noqa: E731
    plain, large = at(resolution=64), at(resolution=128)
    assert large["decoding"] / plain["decoding"] == pytest.approx(4, rel=0.1)
    assert large["training"] / plain["training"] == pytest.approx(4, rel=0.2)
    assert at(resolution=64, gradient_checkpointing=True)["training"] < 0.7 * plain["training"]
    assert at(resolution=64, precision="bf16")["decoding"] == pytest.approx(plain["decoding"] / 2, rel=0.05)


def sd_turbo(**overrides):
    return resolve(Request(reward="aesthetic", model="sd-turbo", overrides=overrides)).config


def test_an_estimate_adds_up():
    """SD-Turbo in fp16: 1.29 G parameters of 2 bytes; 256 trajectories of 3 x 50 + 1 latents of 4 x 64 x 64 floats."""
    needed = memory_estimate.estimate(sd_turbo(), 4, "cuda")
    assert needed.fixed["weights"] == 2 * (865_910_724 + 83_653_863 + 340_387_840)
    assert needed.fixed["trajectories of an epoch"] == 256 * 151 * 4 * 64 * 64 * 4
    assert needed.fixed["adapter and optimiser"] == 829_952 * 16
    assert needed.total == needed.fixed_bytes + 4 * max(needed.per_latent.values())
    assert needed.per_latent["sampling"] < 0.2 * needed.per_latent["training step"]
    assert 0.5e9 < needed.per_latent["training step"] < 2e9
    assert memory_estimate.estimate(sd_turbo(**{"model.resolution": 256}), 4, "cuda").per_latent[
        "decoding"
    ] == pytest.approx(needed.per_latent["decoding"] / 4)


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ({"method": "nft"}, 1),  # the policy that samples
        ({"method": "nft", "ema.decay": 0.9}, 2),
        ({"method": "sdpo", "ema.decay": 0.9}, 1),
        ({"method": "dgpo"}, 0),
        ({"method": "dgpo", "method.old_policy": "slow"}, 1),
    ],
)
def test_adapters_that_follow_the_learning_one_are_counted(settings, copies):
    """Four bytes of a float32 weight, beside 16 of the learning one with its gradient and moments."""
    settings = {"update.minibatch": 1, "update.accumulation": 1} | settings
    method = settings.pop("method")
    config = resolve(Request(method, "jpeg-compressibility", "sd-turbo", overrides=settings)).config
    assert memory_estimate.estimate(config, 4, "cuda").fixed["adapter and optimiser"] == 829_952 * (16 + 4 * copies)


@pytest.mark.parametrize(
    ("method", "settings", "latents"),
    [
        ("grpo", {}, 3 * 10 + 1),
        ("grpo", {"method.reward": "completion"}, 21 + 2 * 10),
        # Their first state is not completed, and the noise of the last step does not reach SDPO's picture.
        ("sdpo", {"method.reward": "branch", "advantage.gamma": 0.0}, 21 + 2 * 8),
        ("drpo", {}, 21 + 31),  # the base model's trajectories beside those of the policy
        ("drpo", {"method.reference_weight": 0.0}, 31),
        ("drpo", {"method.features": "pixels"}, 21 + 31 + 3 * 8 * 8 / 4),  # 3 x 8 x 8 pixels for 4 channels
    ],
)
def test_what_is_sampled_beside_the_trajectories_is_counted(method, settings, latents):
    settings = {"schedule.steps": 10, "update.minibatch": 1, "update.accumulation": 1} | settings
    config = resolve(Request(method, "jpeg-compressibility", "sd-turbo", overrides=settings)).config
    stored = memory_estimate.estimate(config, 4, "cuda").fixed["trajectories of an epoch"]
    assert stored == 256 * latents * 4 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("settings", "latents", "graphs"),
    [
        ({}, 2 * 2, 1),  # two pairs of SDPO in a minibatch
        ({"update.minibatch": 8}, 2 * 8, 1),
        ({"update.minibatch": 64}, 64, 1),  # more than the micro-batch
        # Minibatches of three at 50 steps each fill a call of eight latents, which is what small calls hold at 64 x 64.
        # Twelve prompts with four pictures each are judged, more than are sampled in an epoch.
        ({"method": "ddpo", "update.minibatch": 3, "sample.images_per_epoch": 12}, 8, 1),
        ({"method": "draft", "method.steps": 4, "update.minibatch": 4}, 4, 4),  # graphs of four steps at once
        ({"method": "draft", "method.steps": 4, "update.minibatch": 128}, 64, 4),
    ],
)
def test_a_call_counts_no_more_latents_than_the_settings_give_it(settings, latents, graphs):
    """A minibatch of few pairs never holds as many graphs as a large micro-batch; decoding does what is judged, too."""
    method = settings.pop("method", "sdpo")
    reward = "emoji-align" if method == "draft" else "jpeg-compressibility"
    base = {
        "update.minibatch": 2,
        "update.accumulation": 1,
        "sample.images_per_epoch": 128,
        "eval.train": "few-animals",
        "eval.images_per_prompt": 4,
    }
    config = resolve(Request(method=method, reward=reward, model="sd-turbo", overrides=base | settings)).config
    needed = memory_estimate.estimate(config, 64, "cuda")
    same = resolve(Request(reward="jpeg-compressibility", model="sd-turbo", overrides=base)).config
    plain = memory_estimate.estimate(same, 64, "cuda").per_latent
    sizes = needed.per_latent
    assert needed.in_a_call("training step") == latents
    # The autoencoder's graph of one picture, in units of decoding it without one.
    decoder = memory_estimate.DECODER_GRAPH * plain["decoding"] if method == "draft" else 0
    assert sizes["training step"] == pytest.approx(graphs * plain["training step"] + decoder)
    assert needed.in_a_call("sampling") == needed.in_a_call("decoding") == (48 if method == "ddpo" else 64)
    largest = max(latents * sizes["training step"], needed.in_a_call("decoding") * sizes["decoding"])
    assert needed.total == needed.fixed_bytes + largest


def test_a_decoder_that_is_differentiated_keeps_its_activations():
    """The constant is what the autoencoder of the published models keeps, in units of its peak without a graph."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        vae = activations.make_network(published("sd-turbo").configs["vae"], "AutoencoderKL")
    with FakeTensorMode():
        activations.give_storage(vae, torch.float32)
        latents = torch.empty(1, 4, 16, 16)
        with torch.no_grad():
            plain = activations._peak(vae, lambda: vae.decode(latents))
        kept = activations._peak(vae, lambda: vae.decode(latents.requires_grad_()))
    assert kept / plain == pytest.approx(memory_estimate.DECODER_GRAPH, rel=0.01)


@pytest.mark.parametrize(("features", "graphs"), [("latent", 0), ("pixels", 1), ("scorer", 1)])
def test_a_loss_on_pixels_holds_the_graph_of_the_decoder(features, graphs):
    own = {"method.features": features, "update.minibatch": 1, "update.accumulation": 1}
    config = resolve(Request("drpo", "emoji-align", "sd-turbo", overrides=own)).config
    sizes = memory_estimate.estimate(config, 4, "cuda").per_latent
    alone = resolve(Request("sdpo", "emoji-align", "sd-turbo")).config
    plain = memory_estimate.estimate(alone, 4, "cuda").per_latent
    decoder = graphs * memory_estimate.DECODER_GRAPH * sizes["decoding"]
    assert sizes["training step"] == pytest.approx(plain["training step"] + decoder)


def test_a_pair_is_never_taken_apart():
    needed = memory_estimate.estimate(sd_turbo(), 1, "cuda")
    assert needed.in_a_call("training step") == 2 and needed.in_a_call("decoding") == 1
    assert needed.least == needed.total == needed.fixed_bytes + 2 * needed.per_latent["training step"]


def test_offloading_and_checkpointing_lower_it():
    plain = memory_estimate.estimate(sd_turbo(), 4, "cuda")
    lean = memory_estimate.estimate(sd_turbo(**{"model.cpu_offload": True}), 4, "cuda")
    # The text encoder, the larger of the two, is what may visit the UNet.
    assert plain.fixed["weights"] - lean.fixed["weights"] == 2 * 83_653_863
    trajectories = plain.fixed["trajectories of an epoch"]
    assert lean.host["in CPU memory (offloaded)"] == 2 * (83_653_863 + 340_387_840) + trajectories
    assert lean.fixed["trajectories of an epoch"] == 0
    checkpointed = memory_estimate.estimate(sd_turbo(**{"model.gradient_checkpointing": True}), 4, "cuda")
    assert checkpointed.per_latent["training step"] < 0.5 * plain.per_latent["training step"]


def test_what_cannot_fit_is_refused_and_what_fits_in_parts_is_told_how():
    config = sd_turbo()
    needed = memory_estimate.estimate(config, 64, "cuda")
    assert memory_estimate.check(needed, needed.total, config.model) is None
    warning = memory_estimate.check(needed, needed.total / 2, config.model)
    fitting = int(warning.partition("--micro-batch ")[2].partition(" ")[0])
    assert memory_estimate.estimate(config, fitting, "cuda").total <= needed.total / 2
    assert memory_estimate.estimate(config, fitting + 1, "cuda").total > needed.total / 2
    assert "gradient_checkpointing" in warning
    with pytest.raises(MissingError, match="Even with --micro-batch 1"):
        memory_estimate.check(needed, needed.least - 1, config.model)


def test_a_dry_run_shows_it_and_a_run_is_refused_before_loading(tiny_pipe, tmp_path, monkeypatch, capsys):
    from sdpo_bench.cli.run_plan import needed_memory
    from sdpo_bench.settings import Runtime

    needs = needed_memory(make_resolved(tiny_pipe), Runtime(tmp_path, "cpu"))
    assert needs["warning"] is None and needs["peak_bytes"] > 0 and json.dumps(needs)
    resolved = make_resolved(tiny_pipe)
    elsewhere = replace(resolved.config, model=replace(resolved.config.model, name="nobody/nothing"))
    assert "unknown" in needed_memory(replace(resolved, config=elsewhere), Runtime(tmp_path, "cpu"))
    from sdpo_bench.cli.entry import main

    monkeypatch.setattr(memory_estimate, "available_bytes", lambda device: 1e6)
    common = ["run", "--model", str(tiny_pipe), "--reward", "jpeg-compressibility", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main([*common, "--device", "cpu"])
    assert stop.value.code == 3
    assert "are free here" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*common, "--device", "cpu", "--dry-run"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "at the peak" in shown and "warning" in shown
