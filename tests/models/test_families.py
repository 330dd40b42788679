"""SDXL-shaped and consistency pipelines: same pictures as stock diffusers, trained end to end, adapters that load."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from factories import make_resolved, make_trainer
from sdpo_bench.cli.commands.fetch import fetch_command
from sdpo_bench.cli.entry import main
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.evaluation.base_scores import base_folder
from sdpo_bench.hashing import digest
from sdpo_bench.methods._temporal_critic import TemporalCritic
from sdpo_bench.models.base_model import load_policy, model_digest, refuse_changed
from sdpo_bench.models.known_models import known_model
from sdpo_bench.rollout.group_cost import group_cost
from sdpo_bench.rollout.sampling import Noise, Trajectories, pick, replay
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.saved_adapter import load_adapter
from sdpo_bench.scoring.weighted_sum import Basis
from sdpo_bench.settings import ModelSettings, Runtime
from sdpo_bench.training.critic import state_values
from tools.random_pipeline import SMALL, SMALL_FLOW, write_pipeline

PROMPTS = ["a cat", "the other dog"]


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Small pipeline folders of other shapes than the fixtures' Stable Diffusion, by the name of the shape."""
    return {
        shape: write_pipeline(configs, tmp_path_factory.mktemp("small") / shape) for shape, configs in SMALL.items()
    }


@pytest.fixture(params=sorted(SMALL))
def shaped(request, small):
    return small[request.param]


def stock(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures_of(policy, schedule, start, noise):
    result = replay(policy, schedule, PROMPTS, start[:, None], noise[:, None], shared_start=False)
    return policy.decode(result.latents[:, 0, -1])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_sdxl_pictures_are_stock_diffusers(small, guidance):
    """Both encoders, pooled embeddings, size conditioning and the zeroed negative prompt, against the pipeline call."""
    pipeline = stock(small["sdxl"])
    config = dict(pipeline.scheduler.config)
    pipeline.scheduler = DDIMScheduler.from_config(config, set_alpha_to_one=False, clip_sample=False)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs = pipeline(PROMPTS, num_inference_steps=4, guidance_scale=guidance, latents=start, output_type="pt").images
    policy = load_policy(ModelSettings(name=str(small["sdxl"]), guidance_scale=guidance))
    schedule = make_schedule(config, 4, eta=0.0)
    ours = pictures_of(policy, schedule, start, torch.zeros(2, 4, 4, 8, 8))
    assert (ours - theirs).abs().max() < 2e-4
    other = pictures_of(
        load_policy(ModelSettings(name=str(small["sdxl"]), guidance_scale=guidance, resolution=32)),
        schedule,
        torch.randn(2, 4, 16, 16),
        torch.zeros(2, 4, 4, 16, 16),
    )
    assert other.shape[-1] == 32


@pytest.mark.parametrize("guidance", [1.0, 8.0])
def test_consistency_pictures_are_stock_diffusers(small, guidance, monkeypatch):
    """Stochastic step and guidance embedding against LatentConsistencyModelPipeline with the same noise."""
    import diffusers.schedulers.scheduling_lcm as stock_lcm

    noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    drawn = iter(noise.unbind(1))
    monkeypatch.setattr(stock_lcm, "randn_tensor", lambda *a, **k: next(drawn))
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    pipeline = stock(small["lcm"])
    theirs = pipeline(PROMPTS, num_inference_steps=4, guidance_scale=guidance, latents=start, output_type="pt").images
    policy = load_policy(ModelSettings(name=str(small["lcm"]), guidance_scale=guidance))
    assert policy.branches == 1
    ours = pictures_of(policy, make_schedule(dict(pipeline.scheduler.config), 4, sampler="lcm"), start, noise)
    assert (ours - theirs).abs().max() < 2e-4
    policy.set_guidance(3.0)
    other = pictures_of(policy, make_schedule(dict(pipeline.scheduler.config), 4, sampler="lcm"), start, noise)
    assert (other - theirs).abs().max() > 1e-3, "the UNet hears the new scale"


@pytest.mark.slow
def test_a_run_of_another_shape_end_to_end(shaped, tmp_path):
    """Train, save, evaluate; the bill is the predicted one; stock diffusers shows what the adapter does."""
    # A loss over single steps for one shape, over whole trajectories for the one whose last step draws nothing.
    method = "sdpo" if shaped.name == "sdxl" else "sparse_dpo"
    resolved = make_resolved(shaped, method, **{"budget.images": 8, "update.lr": 0.05})
    outcome = run_job(resolved, Runtime(tmp_path, "cpu"))
    (row,) = outcome.run.log()
    assert row["ratio_at_zero_update"] < 1e-5
    assert {r["steps"] for r in outcome.table} == {1, 2}
    lcm = shaped.name == "lcm"
    record = outcome.run.record()
    assert record["schedule"]["sampler"] == ("lcm" if lcm else "ddim")
    weights = [1.0, 1.0, 0.0 if lcm else 1.0]
    plugin = resolved.method(resolved.method.Settings())
    cost = group_cost(plugin, weights, inner_epochs=1, guided=False)
    assert row["bill"]["backward"] == 4 * cost.backward
    assert row["gradient_share_by_step"][-1] == 0 if lcm else row["gradient_share_by_step"][-1] > 0
    check_adapter(shaped, outcome.run.lora, lcm)


def check_adapter(folder, lora, lcm):
    pipeline = stock(folder)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def draw():
        return pipeline(PROMPTS, num_inference_steps=1, guidance_scale=1.0, latents=start, output_type="latent").images

    config = dict(pipeline.scheduler.config)
    if not lcm:
        pipeline.scheduler = DDIMScheduler.from_config(config, set_alpha_to_one=False, clip_sample=False)
    base = draw()
    pipeline.load_lora_weights(str(lora), weight_name="pytorch_lora_weights.safetensors")
    tuned = draw()
    policy = load_policy(ModelSettings(name=str(folder)), lora_seed=0)
    load_adapter(policy, lora)
    schedule = make_schedule(config, 1, **({"sampler": "lcm"} if lcm else {"eta": 0.0}))
    ours = replay(policy, schedule, PROMPTS, start[:, None], torch.zeros(2, 1, 1, 4, 8, 8), shared_start=False)
    assert (tuned - base).abs().max() > 1e-3
    assert (ours.latents[:, 0, -1] - tuned).abs().max() < 1e-4


@pytest.mark.slow
def test_low_precision_of_another_shape(shaped, tmp_path):
    """bf16 weights, float32 adapter; SDXL's autoencoder stays float32."""
    trainer = make_trainer(make_resolved(shaped, **{"budget.images": 8, "model.precision": "bf16"}), tmp_path)
    trainer.train()
    policy = trainer.policy
    assert policy.denoiser.conv_in.weight.dtype == torch.bfloat16
    assert {p.dtype for p in policy.lora_parameters().values()} == {torch.float32}
    assert policy.vae.dtype == (torch.float32 if shaped.name == "sdxl" else torch.bfloat16)


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.policy.lora_parameters().items()}


@pytest.mark.slow
def test_saving_memory_changes_no_number_and_no_identity(tiny_pipe, tmp_path):
    plain = make_resolved(tiny_pipe)
    lean = make_resolved(tiny_pipe, **{"model.gradient_checkpointing": True, "model.cpu_offload": True})
    assert plain.run_id == lean.run_id
    assert make_resolved(tiny_pipe, **{"model.resolution": 32}).run_id != plain.run_id
    trainers = [make_trainer(r, tmp_path / str(i)) for i, r in enumerate((plain, lean))]
    recomputed = []
    import diffusers.models.unets.unet_2d_blocks as blocks

    for trainer in trainers:
        for module in trainer.policy.denoiser.modules():
            if isinstance(module, blocks.ResnetBlock2D):
                module.register_forward_pre_hook(lambda m, i, t=trainer: recomputed.append(t))
        trainer.train()
    assert recomputed.count(trainers[1]) > 1.2 * recomputed.count(trainers[0]), "activations are computed again"
    logs = [t.run.log() for t in trainers]
    assert logs[0] == logs[1]
    first, second = map(weights_of, trainers)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_offloaded_parts_visit_the_device_only_while_they_work(tiny_pipe, monkeypatch):
    policy = load_policy(ModelSettings(name=str(tiny_pipe), cpu_offload=True))
    moves = []
    for name in ("vae", "text_encoder"):
        part = getattr(policy.pipeline, name)
        monkeypatch.setattr(part, "to", lambda where, n=name: moves.append((n, str(where))))
    policy.device = torch.device("cpu", 0)  # equal to the CPU in effect, and to be told from it in the list
    policy.encode(["a cat", "a dog"])
    policy.encode(["a cat"])
    with torch.no_grad():
        policy.decode(torch.zeros(1, 4, 8, 8))
    assert moves == [("text_encoder", "cpu:0"), ("text_encoder", "cpu"), ("vae", "cpu:0"), ("vae", "cpu")]


def test_trajectories_wait_where_they_are_stored_and_come_to_the_device(tiny_pipe, monkeypatch):
    """The device is one without data here, so that a tensor which stays behind shows."""
    device = torch.device("meta")
    policy = load_policy(ModelSettings(name=str(tiny_pipe), cpu_offload=True))
    assert (policy.storage, load_policy(ModelSettings(name=str(tiny_pipe))).storage.type) == (
        torch.device("cpu"),
        "cpu",
    )
    latents = torch.randn(3, 2, 4, 4, 8, 8)
    groups, steps = torch.tensor([2, 0]), torch.tensor([1, 3])
    assert torch.equal(pick(latents, groups, steps, policy.storage)[1], latents[0, :, 3])
    assert pick(latents, groups, steps, device).device == device
    network = TemporalCritic(4, 3).to(device)
    trajectories = Trajectories(("a", "b", "c"), None, latents, latents[:, :, 1:], torch.zeros(3, 2, 3), False)
    values = state_values(network, trajectories, groups, steps[:, None])
    assert (values.device, values.shape) == (device, (2, 2, 1))


def test_a_resolution_between_the_strides_is_refused(tiny_pipe):
    with pytest.raises(UsageError, match=r"multiple of 4. Use 20"):
        load_policy(ModelSettings(name=str(tiny_pipe), resolution=21))
    assert load_policy(ModelSettings(name=str(tiny_pipe), resolution=24)).latent_shape == (4, 12, 12)


def test_a_local_consistency_model_is_sampled_as_one(small):
    assert known_model(str(small["lcm"])).defaults["schedule.sampler"] == "lcm"
    assert "schedule.sampler" not in known_model(str(small["sdxl"])).defaults
    known = known_model("lcm-dreamshaper-v7").defaults
    assert (known["schedule.sampler"], known["eval.sampler"], known["model.guidance_scale"]) == ("lcm", "lcm", 8.0)


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """A function: put a pipeline folder into the hub cache as a commit, and as the newest one of a branch."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--somebody--model"

    def commit(folder, name, branch="main"):
        shutil.copytree(folder, repository / "snapshots" / name)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(name)

    return commit


@pytest.mark.parametrize("shape", sorted(SMALL))
def test_a_pipeline_in_the_hub_cache_has_the_defaults_of_its_folder(small, shape, publish):
    """The name of a repository and the folder that it was downloaded to are one model."""
    publish(small[shape], "a" * 40)
    assert known_model("somebody/model").defaults == known_model(str(small[shape])).defaults


def test_a_hub_model_is_read_at_the_revision_that_is_named(small, publish):
    publish(small["sdxl"], "a" * 40)
    publish(small["lcm"], "b" * 40, branch="distilled")
    request = Request(model="somebody/model", reward="jpeg-compressibility")
    assert resolve(request).config.schedule.sampler != "lcm"
    for revision in ("distilled", "b" * 40):
        chosen = resolve(replace(request, overrides={"model.revision": revision})).config
        assert (chosen.schedule.sampler, chosen.model.guidance_scale) == ("lcm", 8.0)


def test_a_hub_model_without_its_files_is_not_given_a_guessed_sampler(small, publish):
    request = Request(model="somebody/model", reward="jpeg-compressibility")
    with pytest.raises(MissingError, match="which sampler.*Type: sdpo-bench fetch somebody/model$"):
        resolve(request)
    publish(small["lcm"], "a" * 40)
    assert resolve(request).config.schedule.sampler == "lcm"
    with pytest.raises(MissingError, match="fetch somebody/model@other"):
        resolve(replace(request, overrides={"model.revision": "other"}))


def test_a_hub_model_is_fetched_by_its_id(small, publish, capsys):
    publish(small["lcm"], "a" * 40)
    fetch_command(("somebody/model", "somebody/model@other"), dry_run=True)
    printed = capsys.readouterr().out
    assert "somebody/model: somebody/model (cached)" in printed
    assert "somebody/model@other: somebody/model (size unknown)" in printed


def test_a_local_consistency_model_gets_the_guidance_of_the_known_one(small, capsys):
    """8 is that of the stock pipeline's example."""
    chosen = resolve(Request(model=str(small["lcm"]), reward="jpeg-compressibility"))
    assert (chosen.config.model.guidance_scale, chosen.config.eval.guidance_scale) == (8.0, 8.0)
    for key in ("model.guidance_scale", "eval.guidance_scale", "schedule.sampler"):
        assert chosen.sources[key] == "the folder's family: latent consistency model"
    own = resolve(
        Request(model=str(small["lcm"]), reward="jpeg-compressibility", overrides={"model.guidance_scale": 3.0})
    )
    assert own.config.model.guidance_scale == 3.0 and own.sources["model.guidance_scale"] == "you"
    with pytest.raises(SystemExit) as ended:
        main(["run", "--model", str(small["lcm"]), "--reward", "jpeg-compressibility", "--dry-run"])
    assert ended.value.code in (None, 0)
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if "model.guidance_scale" in row]
    assert row[2] == "8" and row[3].startswith("the folder"), row


def test_guidance_that_would_cost_a_second_evaluation_is_nobodys_default(small, tmp_path):
    """A consistency sampler on a UNet without guidance embedding, as of a merged consistency LoRA."""
    folder = shutil.copytree(small["lcm"], tmp_path / "merged")
    config = json.loads((folder / "unet" / "config.json").read_text()) | {"time_cond_proj_dim": None}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    chosen = resolve(Request(model=str(folder), reward="jpeg-compressibility"))
    assert (chosen.config.model.guidance_scale, chosen.config.schedule.sampler) == (1.0, "lcm")
    assert chosen.sources["schedule.sampler"].endswith("latent consistency model without guidance embedding")
    sdxl = resolve(Request(model=str(small["sdxl"]), reward="jpeg-compressibility"))
    assert sdxl.config.model.guidance_scale == 1.0 and "family" not in sdxl.sources["schedule.spacing"]


def damage_weights(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def damage_header(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def damage_config(folder):
    (folder / "unet" / "config.json").write_text("{")


def remove_weights(folder):
    (folder / "text_encoder" / "model.safetensors").unlink()


def other_variant(folder):
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")


def wrong_shape(folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [24, 48]}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage_weights, "1,000 bytes too early"),
        (damage_header, "damaged"),
        (damage_config, "config.json' is damaged"),
        (remove_weights, r"text_encoder has no weights\."),
        (other_variant, r"no weights but those of a variant, 'model.fp16.safetensors' \(save the pipeline without"),
        (wrong_shape, "cannot be loaded"),
    ],
)
def test_a_damaged_pipeline_is_said_to_be_one(tiny_pipe, tmp_path, harm, said):
    folder = shutil.copytree(tiny_pipe, tmp_path / "pipe")
    harm(folder)
    with pytest.raises(MissingError, match=said):
        load_policy(ModelSettings(name=str(folder)))


def test_a_full_memory_is_no_damaged_pipeline(tiny_pipe, monkeypatch):
    from diffusers import DiffusionPipeline

    def full(*args, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", full)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        load_policy(ModelSettings(name=str(tiny_pipe)))


@pytest.mark.parametrize("change", [{"in_channels": 9}, {"addition_embed_type": "image"}, {"class_embed_type": "x"}])
def test_pipelines_for_other_tasks_are_refused(tiny_pipe, tmp_path, change):
    folder = shutil.copytree(tiny_pipe, tmp_path / "pipe")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match="not a plain text-to-image pipeline"):
        load_policy(ModelSettings(name=str(folder)))


def test_changed_weights_are_another_model(tiny_pipe, tmp_path):
    """Or a run would go on from weights that it did not begin with, and be judged beside another model's scores."""
    folder = shutil.copytree(tiny_pipe, tmp_path / "pipe")
    weights = next((folder / "unet").glob("*.safetensors"))

    def ids():
        resolved = make_resolved(folder)
        c = resolved.config
        basis = Basis(c.model, c.schedule, c.sample.prompts)
        return resolved.run_id, base_folder(c.model, c.eval, Runtime(out=tmp_path)).run_id, basis.id

    def put(content):
        before = weights.stat().st_mtime_ns
        weights.write_bytes(content)
        os.utime(weights, ns=(before + 1, before + 1))

    first, content = ids(), weights.read_bytes()
    (folder / "README.md").write_text("what is not loaded changes nothing")
    assert ids() == first
    put(content[:-1] + bytes([content[-1] ^ 1]))
    changed = ids()
    assert all(one != other for one, other in zip(first, changed, strict=True))
    put(content)
    assert ids() == first
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert ids()[0] not in (first[0], changed[0])
    assert model_digest(str(shutil.copytree(tiny_pipe, tmp_path / "moved"))) == model_digest(str(tiny_pipe))


@pytest.mark.parametrize("name", ["emoji-turbo", "nobody/nothing"])
def test_what_cannot_change_under_its_name_keeps_its_id(name, tmp_path, monkeypatch):
    monkeypatch.setattr("sdpo_bench.config.resolve.refuse_unread", lambda settings: None)
    assert model_digest(name) == ""
    resolved = resolve(Request(model=name, reward="jpeg-compressibility"))
    assert list(resolved.versions) == ["reward"]
    model = resolved.config.model
    facts = {"model": name, "sampler": sampler_id(resolved.config.eval), "revision": None, "precision": "fp32"}
    assert base_folder(model, resolved.config.eval, Runtime(out=tmp_path)).run_id.endswith(digest(facts))


def test_a_run_is_not_judged_on_another_pipeline(tiny_pipe):
    settings = ModelSettings(name=str(tiny_pipe))
    refuse_changed(settings, {"run": "r", "model_digest": model_digest(settings.name)})
    refuse_changed(settings, {"run": "r"})  # trained before digests were recorded
    with pytest.raises(UsageError, match="has changed since run 'r' was trained"):
        refuse_changed(settings, {"run": "r", "model_digest": "0" * 16})
    gone = ModelSettings(name=str(settings.name) + "-moved")
    with pytest.raises(UsageError, match="that run 'r' was trained on is not there. Put it back, or a link"):
        refuse_changed(gone, {"run": "r", "model_digest": "0" * 16})


def test_noise_is_as_large_as_the_resolution(small):
    policy = load_policy(replace(ModelSettings(name=str(small["sdxl"])), resolution=32))
    assert Noise((0,)).initial(policy.latent_shape, [0], 1, False).shape == (1, 1, 4, 16, 16)


def test_t5_in_half_precision_keeps_the_weights_that_overflow(tmp_path):
    """Transformers loads T5's output projections in float32 (its ``_keep_in_fp32_modules``), as the stock pipeline has
    them; in float16 they overflow and are clamped without a word."""
    folder = write_pipeline(SMALL_FLOW["sd3"], tmp_path / "sd3")
    policy = load_policy(ModelSettings(name=str(folder), precision="fp16", resolution=16))
    encoder = policy.pipeline.text_encoder_3.encoder.block[0].layer[-1].DenseReluDense
    assert (encoder.wo.weight.dtype, encoder.wi_0.weight.dtype) == (torch.float32, torch.float16)
    assert policy.denoiser.dtype == torch.float16
