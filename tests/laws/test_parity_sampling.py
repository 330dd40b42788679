"""The denoising step, dense rewards, returns, trackers and whole trajectories equal the official implementations'.

Numbers: fixtures a, b, c and e, computed by running SDPO fcee34d and DDPO 1958463 (see tests/fixtures/README.md).
"""

import numpy as np
import pytest
import torch

from sdpo_bench.advantages.normalise import Normaliser, advantages, discounted_returns
from sdpo_bench.api import NoSettings, Reward
from sdpo_bench.models.policy import Conditioning
from sdpo_bench.rollout.sampling import replay
from sdpo_bench.rollout.schedule import gaussian_log_prob, make_schedule
from sdpo_bench.scoring.dense_rewards import Queries, choose_queries, predicted_rewards
from sdpo_bench.scoring.scorer import Scorer, ask_rewards

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
SPACINGS = {"sdturbo": ("trailing", 1), "leading1": ("leading", 1), "leading0": ("leading", 0)}
DTYPES = {"f32": torch.float32, "f64": torch.float64}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest error, relative where values exceed 1."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs() / (1 + theirs.abs())).max().item() if ours.numel() else 0.0


@pytest.fixture(scope="module")
def steps_file(official):
    return np.load(official / "a_ddim_step.npz")


def official_schedule(key: str):
    config, prediction, steps, eta = key.split("/")
    spacing, offset = SPACINGS[config]
    scheduler = SD | {"prediction_type": prediction, "steps_offset": offset}
    return make_schedule(scheduler, int(steps[1:]), eta=float(eta[3:]), spacing=spacing, prev_timestep="official")


@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_denoising_step_and_its_log_probability(steps_file, precision):
    dtype = DTYPES[precision]
    for key in steps_file["keys"]:
        schedule = official_schedule(key)
        read = lambda name: torch.from_numpy(steps_file[f"{key}/{precision}/{name}"])  # noqa: B023, E731
        assert schedule.timesteps.tolist() == steps_file[f"{key}/timesteps"].tolist(), key
        assert schedule.prev_timesteps.tolist() == steps_file[f"{key}/f32/prev_timestep"].tolist(), key
        assert relative(schedule.std(dtype), read("std").to(dtype)) <= 1e-6, key
        for i in range(schedule.num_steps):
            inputs = {
                name: torch.from_numpy(steps_file[f"in/n{schedule.num_steps}/{name}"][i]).to(dtype)
                for name in ("model_output", "sample", "noise")
            }
            output = inputs["model_output"].clone().requires_grad_()
            index = torch.full((len(output),), i)
            step = schedule.denoise(output, inputs["sample"], index)
            drawn = step.mean + step.std * inputs["noise"]
            assert relative(drawn.detach(), read("prev_sample")[i]) <= 1e-6, (key, i)
            assert relative(step.x0.detach(), read("x0")[i]) <= 1e-6, (key, i)
            deterministic = key.startswith("leading0") and i == schedule.num_steps - 1
            if deterministic:  # the official log-probability is NaN there; the lint refuses such a schedule
                assert torch.isnan(read("logp_given")[i]).all()
                continue
            log_prob = gaussian_log_prob(read("prev_given")[i], step.mean, step.std)
            assert relative(log_prob.detach(), read("logp_given")[i]) <= 1e-6, (key, i)
            (slope,) = torch.autograd.grad(log_prob.sum(), output)
            assert relative(slope, read("dlogp_dmodel")[i]) <= 1e-6, (key, i)
            sampled = gaussian_log_prob(read("prev_sample")[i], step.mean, step.std)
            assert relative(sampled.detach(), read("logp_sample")[i]) <= 1e-6, (key, i)


def test_mean_from_a_known_original_is_the_mean_of_the_step(steps_file):
    for key in [k for k in steps_file["keys"] if not k.startswith("leading0")]:
        schedule = official_schedule(key)
        for i in range(schedule.num_steps):
            read = lambda n: torch.from_numpy(steps_file[f"in/n{schedule.num_steps}/{n}"][i]).double()  # noqa: B023, E731
            index = torch.full((2,), i)
            step = schedule.denoise(read("model_output"), read("sample"), index)
            mean = schedule.mean_from_original(step.x0, read("sample"), index)
            assert relative(mean, step.mean) <= 1e-9


def official_queries(file, key, precision, j, steps):
    """Queries in our order (first, last, anchor) from the official anchor and similarities."""
    anchor = torch.from_numpy(file[f"{key}/{precision}/anchor{j}"])
    names = ("first", "last", "anchor")
    similarity = torch.stack([torch.from_numpy(file[f"{key}/{precision}/sim_{n}{j}"]) for n in names], -1)
    ends = torch.zeros_like(anchor), torch.full_like(anchor, steps - 1)
    return Queries(torch.stack([*ends, anchor], 1), similarity, 1)


def test_dense_rewards_predicted_from_three_queries(official):
    file = np.load(official / "b_dense_rewards.npz")
    compared = 0
    for key in file["keys"]:
        steps = int(key.split("/T")[1])
        if steps == 1:  # the official code raises an IndexError; ours is tested in scoring/test_dense_rewards.py
            continue
        for j in (1, 2):
            queries = official_queries(file, key, "f64", j, steps)
            by_step = torch.from_numpy(file[f"{key}/step_rewards{j}"]).double()
            free = torch.from_numpy(file[f"{key}/free_rewards{j}"]).double()[:, [0, 2, 1]]
            for rewards, name in ((by_step.gather(1, queries.steps), "dense_step"), (free, "dense_free")):
                theirs = torch.from_numpy(file[f"{key}/f64/{name}{j}"])
                ours = predicted_rewards(queries, rewards, "official")
                defined = torch.isfinite(theirs)
                assert torch.equal(torch.isfinite(ours), defined), key
                assert relative(ours[defined], theirs[defined]) <= 1e-6, key
                positive = (queries.similarity > 0).all(-1)  # where the guard must change nothing
                guarded = predicted_rewards(queries, rewards)
                assert relative(guarded[positive], theirs[positive]) <= 1e-6, key
                compared += int(defined.sum())
    assert compared > 1000


def test_anchor_and_similarities(official):
    file = np.load(official / "b_dense_rewards.npz")
    for key in file["keys"]:
        steps = int(key.split("/T")[1])
        if steps < 3:
            continue
        for j in (1, 2):
            theirs = official_queries(file, key, "f64", j, steps)
            ours = choose_queries(torch.from_numpy(file[f"{key}/latents{j}"]).double(), "predicted")
            ends = theirs.similarity[..., :2]
            assert relative(ours.similarity[..., :2], ends) <= 1e-6
            # First and last tie in exact arithmetic: compare anchors only where rounding did not decide.
            margin = f"{key}/anchor_margin{j}"
            margin = margin if margin in file.files else f"{key}/f64/anchor_margin{j}"
            clear = torch.from_numpy(file[margin]) > 1e-5
            assert torch.equal(ours.steps[clear, 2], theirs.steps[clear, 2]), key
            assert relative(ours.similarity[clear], theirs.similarity[clear]) <= 1e-6, key


def test_discounted_returns(official):
    file = np.load(official / "c_returns_trackers.npz")
    keys = [k for k in file.files if k.startswith("returns/") and k.endswith("/f64/returns")]
    assert len(keys) >= 20
    for key in keys:
        _, gamma, steps, *_ = key.split("/")
        rewards = torch.from_numpy(file[f"returns/{gamma}/{steps}/rewards"]).double()
        assert relative(discounted_returns(rewards, float(gamma[1:])), torch.from_numpy(file[key])) <= 1e-6


def test_per_prompt_statistics_over_seven_epochs(official):
    file = np.load(official / "c_returns_trackers.npz")
    cases = sorted({k.split("/")[1] for k in file.files if k.startswith("tracker/")})
    assert {"paper", "small", "minover", "one"} <= set(cases)
    for case in cases:
        size, minimum = (int(v) for v in file[f"tracker/{case}/buffer_min"])
        for steps in (1, 4):
            by_step = Normaliser("per-step-prompt", size, minimum)
            by_prompt = Normaliser("per-prompt", size, minimum)
            for epoch in range(7):
                at = f"tracker/{case}/T{steps}/ep{epoch}"
                returns = torch.from_numpy(file[f"{at}/returns"]).double()
                prompts = [str(p) for p in file[f"{at}/prompts"]]
                dense = by_step(returns, prompts)
                sparse = by_prompt(returns[:, -1:], prompts)[:, 0]
                assert relative(dense, torch.from_numpy(file[f"{at}/sdpo_adv_f64"])) <= 1e-6, at
                assert relative(sparse, torch.from_numpy(file[f"{at}/ddpo_adv_f64"])) <= 1e-6, at
                for prompt, buffer in by_step.buffers.items():
                    theirs = file[f"{at}/sdpo_buffer_step0/{prompt}"]
                    np.testing.assert_allclose(np.stack(buffer)[:, 0], theirs, rtol=1e-7)


class Brightness(Reward):
    """Ten times the mean brightness: the reward the golden runs were made with."""

    version = "1"

    def __call__(self, images, prompts):
        return 10 * images.mean((1, 2, 3))


@pytest.mark.parametrize("model", ["base_traj", "lora_traj"])
def test_pairs_of_trajectories(official, tiny_pipe, model):
    from sdpo_bench.models.base_model import load_policy
    from sdpo_bench.settings import ModelSettings

    file = np.load(official / "e_trajectory_pair.npz")
    policy = load_policy(ModelSettings(name=str(tiny_pipe)), lora_seed=0)
    load_official_lora(policy, file if model == "lora_traj" else None)
    embeds = torch.from_numpy(file["prompt_embeds"])
    prompts = [str(p) for p in file["prompts"]]
    ours = policy.encode(prompts).positive["encoder_hidden_states"]
    assert relative(ours, embeds) <= 1e-5
    cases = sorted({"/".join(k.split("/")[:3]) for k in file.files if k.startswith(f"{model}/T")})
    assert len(cases) >= 3
    for case in cases:
        steps, eta = int(case.split("/")[1][1:]), float(case.split("/eta")[1])
        schedule = make_schedule(dict(policy.pipeline.scheduler.config), steps, eta=eta, prev_timestep="official")
        assert schedule.timesteps.tolist() == file[f"{case}/timesteps"].tolist()
        read = lambda name: torch.stack([torch.from_numpy(file[f"{case}/{name}{j}"]) for j in (1, 2)], 1)  # noqa: B023, E731
        start = torch.from_numpy(file[f"{case}/init_latents"])[:, None].expand(-1, 2, -1, -1, -1)
        result = replay(
            policy,
            schedule,
            prompts,
            start,
            read("noise"),
            shared_start=True,
            conditioning=Conditioning({"encoder_hidden_states": embeds}),
        )
        assert relative(result.latents, read("latents")) <= 1e-4, case
        assert relative(result.x0, read("x0")) <= 1e-4, case
        assert relative(result.log_probs, read("log_probs")) <= 1e-4, case
        check_images(policy, result, read, steps, case)


def check_images(policy, result, read, steps, case):
    """The decoded predicted originals are the official images (first, anchor, last), judged by their brightness."""
    queries = choose_queries(result.x0, "predicted")
    answers = ask_rewards(policy, result, queries, Scorer("brightness", Brightness(NoSettings())), decode_sample=False)
    theirs = 10 * read("images").mean((3, 4, 5))
    last = answers.rewards[..., 1 if steps > 2 else -1]
    assert relative(last, theirs[..., -1]) <= 1e-4, case
    assert relative(answers.final_images, read("images")[:, :, -1]) <= 1e-4, case
    if steps > 2:
        assert relative(answers.rewards[..., 0], theirs[..., 0]) <= 1e-4, case
        # Where the official argmin fell on an end (a tie that rounding broke), ours is an inner step by definition.
        inner = (read("anchor") > 0) & (read("anchor") < steps - 1)
        same = queries.steps[..., 2] == read("anchor")
        assert torch.equal(same, inner), case
        assert relative(answers.rewards[..., 2][same], theirs[..., 1][same]) <= 1e-4, case


def load_official_lora(policy, file):
    """Put the fixture's adapter (or none: B = 0) into the policy."""
    names = {"down": "lora_A", "up": "lora_B"}
    parameters = policy.lora_parameters()
    if file is None:
        return
    for key in [k for k in file.files if k.startswith("lora/")]:
        module, _, rest = key.removeprefix("lora/").partition(".processor.")
        projection, which, _ = rest.replace("_lora", "").split(".")
        projection = "to_out.0" if projection == "to_out" else projection
        parameters[f"{module}.{projection}.{names[which]}.default.weight"].data = torch.from_numpy(file[key]).clone()


def test_guided_sampling_as_ddpo_does_it(official, tiny_pipe):
    from sdpo_bench.models.base_model import load_policy
    from sdpo_bench.settings import ModelSettings

    file = np.load(official / "e_trajectory_pair.npz")
    cases = sorted({k.split("/ddpo_cfg5")[0] + "/ddpo_cfg5" for k in file.files if "ddpo_cfg5" in k})
    assert cases
    for case in cases:
        settings = ModelSettings(name=str(tiny_pipe), guidance_scale=5.0)
        policy = load_policy(settings, lora_seed=0)
        load_official_lora(policy, file if case.startswith("lora") else None)
        steps = int(case.split("/")[1][1:])
        schedule = make_schedule(dict(policy.pipeline.scheduler.config), steps, prev_timestep="official")
        name = lambda key: f"{case}/{key}1" if f"{case}/{key}1" in file.files else f"{case}/{key}"  # noqa: B023, E731
        first = f"{case}/init_latents" if f"{case}/init_latents" in file.files else None
        start = torch.from_numpy(file[first] if first else file[name("latents")][:, 0])[:, None]
        embeds, negative = (torch.from_numpy(file[k]) for k in ("prompt_embeds", "neg_embeds"))
        conditioning = Conditioning({"encoder_hidden_states": embeds}, {"encoder_hidden_states": negative})
        noise = torch.from_numpy(file[name("noise")])[:, None]
        prompts = [str(p) for p in file["prompts"]]
        result = replay(policy, schedule, prompts, start, noise, shared_start=False, conditioning=conditioning)
        assert relative(result.latents[:, 0], torch.from_numpy(file[name("latents")])) <= 1e-4, case
        assert relative(result.log_probs[:, 0], torch.from_numpy(file[name("log_probs")])) <= 1e-4, case
        images = policy.decode(result.latents[:, 0, -1])
        theirs = torch.from_numpy(file[name("images")])
        assert relative(images, theirs[:, -1] if theirs.ndim == 5 else theirs) <= 1e-4, case


def test_paired_advantages_enter_the_buffers_member_by_member(official):
    """Row order is visible through a buffer shorter than an epoch: the golden run's tracker calls pin it.

    The official statistics are float32, ours float64. Float32 statistics of our buffers give the official numbers; ours
    are apart from them by at most the float32 rounding of a mean in units of the standard deviation (0.012 here, where
    the returns of "horse" are 10.72 +- 0.0001).
    """
    file = np.load(official / "f_golden_sdpo.npz")
    minimum = int(next(f for f in file["flags"] if "min_count" in f).split("=")[1])
    normaliser = Normaliser("per-step-prompt", 32, minimum)
    for call in range(2):
        returns = torch.from_numpy(file[f"tracker_call{call}/returns"])
        prompts = [str(p) for p in file[f"tracker_call{call}/prompts"]]
        half = len(prompts) // 2
        pairs = returns.view(2, half, -1).transpose(0, 1)
        ours = advantages(pairs, prompts[:half], normaliser, gamma=0.0, clip=0.0, sparse=False)
        theirs = torch.from_numpy(file[f"tracker_call{call}/advantages"]).view(2, half, -1).transpose(0, 1)
        for i, prompt in enumerate(prompts[:half]):
            sample = np.stack(normaliser.buffers[prompt])
            single = sample.astype(np.float32)
            official_way = (pairs[i] - single.mean(0)) / (single.std(0) + 1e-6)
            assert relative(official_way, theirs[i]) <= 1e-6
            rounding = torch.from_numpy(2**-23 * np.abs(sample.mean(0)) / sample.std(0))
            assert ((ours[i] - theirs[i]).abs() <= 1e-6 + rounding).all()
            assert rounding.max() < 0.013
