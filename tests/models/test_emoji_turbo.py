"""The embedded model and its rewards: vocabulary, prompts, scorers, JPEG numbers, the pipeline folder."""

import json
import math
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdpo_bench.plugins.registry import find
from sdpo_bench.prompts import emoji_grammar
from sdpo_bench.scoring.emoji_scorer import alignment, bounded_log

FIXTURES = Path(__file__).parents[1] / "fixtures"
PACKAGE = Path(str(files("sdpo_bench")))
PIPELINE = PACKAGE / "assets" / "emoji_turbo"
EMOJI_REWARDS = ("emoji-align", "emoji-accuracy", "emoji-style")


@cache
def reward(name: str):
    plugin = find("rewards", name).load()
    return plugin(plugin.Settings())


@cache
def real_pictures() -> tuple[torch.Tensor, list[str]]:
    """16 training-like pictures ``[16, 3, 32, 32]`` and the prompts that are true of them."""
    sheet = np.asarray(Image.open(FIXTURES / "emoji" / "examples.png").convert("RGB"))
    tiles = sheet.reshape(2, 32, 8, 32, 3).transpose(0, 2, 4, 1, 3).reshape(16, 3, 32, 32)
    prompts = json.loads((FIXTURES / "emoji" / "examples.json").read_text())["prompts"]
    return torch.from_numpy(tiles.copy()).float() / 255, prompts


@cache
def pipeline():
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline.from_pretrained(PIPELINE, torch_dtype=torch.float32, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


def sampled(prompts: list[str], steps: int, seed: int = 0) -> torch.Tensor:
    return pipeline()(
        prompts,
        num_inference_steps=steps,
        guidance_scale=1.0,
        eta=1.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images


def prompt_file(name: str) -> list[str]:
    lines = (PACKAGE / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class TestVocabulary:
    def test_sizes_and_uniqueness(self):
        assert (len(emoji_grammar.ANIMALS), len(emoji_grammar.EXTRA), len(emoji_grammar.BACKGROUNDS)) == (45, 20, 10)
        assert len(set(emoji_grammar.CLASSES)) == 65

    def test_simple_animals_are_the_papers_words_in_order(self):
        # First and last of the list in kvablack/ddpo-pytorch and the SDPO code.
        assert prompt_file("simple-animals") == list(emoji_grammar.ANIMALS)
        assert (emoji_grammar.ANIMALS[0], emoji_grammar.ANIMALS[-1]) == ("cat", "kangaroo")

    def test_each_animal_holds_out_one_coloured_background_evenly(self):
        animals = sorted(animal for animal, _ in emoji_grammar.HELD_OUT)
        backgrounds = [background for _, background in emoji_grammar.HELD_OUT]
        assert animals == sorted(emoji_grammar.ANIMALS)
        assert {backgrounds.count(name) for name in emoji_grammar.BACKGROUNDS} == {0, 5}
        assert "white" not in backgrounds

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("cat", ("cat", None)),
            ("a cat on a blue background", ("cat", "blue")),
            ("An Owl on an orange background.", ("owl", "orange")),
            ("two mice", ("mouse", None)),
            ("Four wolves in the park", ("wolf", None)),
            ("a red car", ("car", None)),
            ("a monkey washing dishes", ("monkey", None)),
            ("a castle", (None, None)),
            ("a green background", (None, "green")),
            ("", (None, None)),
        ],
    )
    def test_parse_prompt(self, text, expected):
        assert emoji_grammar.parse_prompt(text) == expected

    def test_parsing_inverts_caption(self):
        for name in emoji_grammar.CLASSES:
            for background in (None, *emoji_grammar.BACKGROUNDS):
                for article in (False, True):
                    text = emoji_grammar.caption(name, background, with_article=article)
                    assert emoji_grammar.parse_prompt(text) == (name, background)


class TestPromptFiles:
    def test_unseen_prompts_are_the_held_out_pairs_and_the_extra_classes(self):
        parsed = [emoji_grammar.parse_prompt(line) for line in prompt_file("emoji-unseen")]
        assert set(parsed[:45]) == set(emoji_grammar.HELD_OUT)
        assert parsed[45:] == [(name, None) for name in emoji_grammar.EXTRA]

    def test_validation_prompts_are_not_held_out_and_not_trained_on(self):
        lines = prompt_file("emoji-validation")
        pairs = [emoji_grammar.parse_prompt(line) for line in lines]
        assert not set(pairs) & emoji_grammar.HELD_OUT
        assert not set(lines) & set(prompt_file("simple-animals"))
        assert all(name and background for name, background in pairs)

    @pytest.mark.parametrize("name", ["simple-animals", "emoji-validation", "emoji-unseen"])
    def test_the_model_knows_every_word(self, name):
        words = {word for line in prompt_file(name) for word in line.split()}
        assert words <= set(emoji_grammar.vocabulary())


class TestScorers:
    @pytest.mark.parametrize("name", EMOJI_REWARDS)
    def test_scores_do_not_depend_on_the_batch(self, name):
        images, prompts = real_pictures()
        together = reward(name)(images, prompts)
        alone = torch.cat([reward(name)(images[i : i + 1], prompts[i : i + 1]) for i in range(len(images))])
        assert together.dtype == torch.float32
        assert together.shape == (16,)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)

    def test_align_ranks_real_over_sampled_over_noise(self):
        images, prompts = real_pictures()
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
        vae = pipeline().vae
        with torch.no_grad():
            rebuilt = (vae.decode(vae.encode(images * 2 - 1).latents).sample / 2 + 0.5).clamp(0, 1)
        score = {
            kind: float(reward("emoji-align")(pictures, prompts).mean())
            for kind, pictures in {
                "real": images,
                "rebuilt": rebuilt,
                "sampled": sampled(prompts, 4),
                "noise": noise,
            }.items()
        }
        assert min(score["real"], score["rebuilt"]) > score["sampled"] + 0.1
        assert score["sampled"] > score["noise"] + 0.5

    def test_align_prefers_the_true_prompt_and_sharp_pictures(self):
        images, prompts = real_pictures()
        align = reward("emoji-align")
        wrong_class = prompts[1:] + prompts[:1]
        small = torch.nn.functional.avg_pool2d(images, 8)
        blurred = torch.nn.functional.interpolate(small, scale_factor=8, mode="bilinear")
        assert align(images, prompts).mean() > align(images, wrong_class).mean() + 2
        assert align(images, prompts).mean() > align(blurred, prompts).mean() + 1

    def test_align_scores_the_background_only_if_the_prompt_names_one(self):
        images, prompts = real_pictures()
        names = [emoji_grammar.parse_prompt(prompt)[0] for prompt in prompts]
        align = reward("emoji-align")
        plain = align(images, [emoji_grammar.caption(name) for name in names])
        wrong = align(images, [emoji_grammar.caption(name, _other_background(p)) for name, p in zip(names, prompts)])
        assert (wrong < plain).all()
        assert (align(images, prompts) > wrong).all()

    def test_accuracy_recognises_real_pictures_and_not_noise(self):
        images, prompts = real_pictures()
        assert reward("emoji-accuracy")(images, prompts).mean() > 0.9
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
        assert reward("emoji-accuracy")(noise, prompts).mean() < 0.2

    def test_align_gradients_reach_the_pictures(self):
        images, prompts = real_pictures()
        images = images.clone().requires_grad_(True)
        reward("emoji-align")(images, prompts).sum().backward()
        assert images.grad.abs().sum() > 0

    def test_alignment_is_the_tempered_log_probability_of_class_and_background(self):
        # Class probabilities ∝ 8, 1, 1, ...; to the power 1/3 they are ∝ 2, 1, 1, ...: "cat" scores ln(2 / (2 + 65)).
        # Backgrounds ∝ 27, 1, ...: ∝ 3, 1, ...: the first one adds ln(3 / (3 + 9)).
        classes, grounds = torch.ones(1, 66), torch.ones(1, 10)
        classes[0, emoji_grammar.CLASSES.index("cat")], grounds[0, 0] = 8.0, 27.0
        stub = lambda images: {"class": (classes / 73).log(), "background": (grounds / 36).log()}  # noqa: E731
        score = lambda prompt: alignment(stub, torch.zeros(1, 3, 32, 32), [prompt]).item()  # noqa: E731
        assert score("cat") == pytest.approx(math.log(2 / 67))
        with_ground = score(f"a cat on a {emoji_grammar.BACKGROUNDS[0]} background")
        assert with_ground == pytest.approx(math.log(2 / 67) + math.log(3 / 12))

    def test_a_mean_of_pictures_scores_below_each_of_them(self):
        images, prompts = real_pictures()
        means = (images + images.flip(0)) / 2
        apart = reward("emoji-align")(images, prompts) - reward("emoji-align")(means, prompts)
        assert (apart > 0).float().mean() >= 15 / 16

    def test_bounded_log_is_a_log_near_one_and_bounded(self):
        p = torch.tensor([1.0, 0.99, 1e-30])
        # 4 (p^(1/4) - 1) by hand: 0, -0.010038, -4.
        torch.testing.assert_close(bounded_log(p.log()), torch.tensor([0.0, -0.010038, -4.0]), atol=1e-5, rtol=0)

    def test_unknown_style_is_refused_with_the_valid_ones(self):
        plugin = find("rewards", "emoji-style").load()
        with pytest.raises(ValueError, match="fluent 3d"):
            plugin(plugin.Settings(style="fluent-3"))


def _other_background(prompt: str) -> str:
    found = emoji_grammar.parse_prompt(prompt)[1]
    return "black" if found != "black" else "white"


class TestJpeg:
    """Numbers recorded with Pillow at quality 95, see tests/fixtures/rewards/README.md."""

    EXPECTED = json.loads((FIXTURES / "rewards" / "jpeg" / "expected.json").read_text())["images"]

    @pytest.mark.parametrize("entry", EXPECTED, ids=lambda entry: entry["name"])
    def test_recorded_sizes(self, entry):
        path = FIXTURES / "rewards" / "common" / "images" / f"{entry['name']}.png"
        pixels = np.asarray(Image.open(path).convert("RGB"))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        tolerance = max(0.01 * entry["bytes"], 16) / 1000
        incompressible = reward("jpeg-incompressibility")(image, [""]).item()
        assert incompressible == pytest.approx(entry["incompressibility_kB"], abs=tolerance)
        assert reward("jpeg-compressibility")(image, [""]).item() == pytest.approx(-incompressible)

    def test_the_other_settings_are_told_apart(self):
        entry = next(e for e in self.EXPECTED if e["name"] == "s96")
        others = [size for key, size in entry["other_settings_bytes"].items() if key != "q95_420"]
        assert all(abs(size - entry["bytes"]) > 16 for size in others)


class TestPipeline:
    @pytest.mark.parametrize("steps", [1, 4])
    def test_stock_diffusers_samples_pictures(self, steps):
        images = sampled(["a cat", "fox on a red background"], steps)
        assert images.shape == (2, 3, 32, 32)
        assert images.isfinite().all()
        assert images.std(dim=(1, 2, 3)).min() > 0.05
        assert (images[0] - images[1]).abs().mean() > 0.05

    def test_schedule_is_the_one_it_was_trained_with(self):
        config = pipeline().scheduler.config
        assert config.prediction_type == "v_prediction"
        assert config.rescale_betas_zero_snr
        assert config.timestep_spacing == "trailing"
        assert not config.clip_sample

    def test_latents_have_unit_variance(self):
        images, _ = real_pictures()
        vae = pipeline().vae
        with torch.no_grad():
            latents = vae.encode(images * 2 - 1).latents * vae.config.scaling_factor
        assert latents.std() == pytest.approx(1, abs=0.15)

    def test_tokenizer_maps_words_and_unknown_words(self):
        words = emoji_grammar.vocabulary()
        ids = pipeline().tokenizer("a Cat washing", padding="max_length", truncation=True).input_ids
        assert ids == [0, words["a"], words["cat"], words["<unk>"], 1, 1, 1, 1]

    def test_shipped_data_is_small_and_names_no_folder_of_the_training_machine(self):
        shipped = [path for path in (PACKAGE / "assets").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in shipped) < 16_000_000  # three models, scorers, a page's scripts
        for path in shipped:
            if path.suffix == ".json":
                assert "_name_or_path" not in path.read_text()


class TestRecipe:
    """The parts of tools/emoji_turbo that the claims about the model rest on."""

    def test_held_out_pairs_have_no_weight_in_the_models_pictures(self):
        from tools.emoji_turbo.pictures import allowed_backgrounds

        weights = allowed_backgrounds()
        zero = {(emoji_grammar.CLASSES[c], emoji_grammar.BACKGROUNDS[b]) for c, b in (weights == 0).nonzero().tolist()}
        assert zero == set(emoji_grammar.HELD_OUT)

    def test_pictures_of_the_pool_avoid_held_out_pairs_and_repeat_with_the_seed(self):
        from tools.emoji_turbo.pictures import Augmentation, make_pool

        glyphs = np.random.default_rng(0).integers(0, 255, (90, 96, 96, 4), dtype=np.uint8)
        labels = np.array([(name, "noto", "0") for name in emoji_grammar.ANIMALS * 2])
        pools = [make_pool(glyphs, labels, 600, 3, held_out=False, augment=Augmentation()) for _ in range(2)]
        pairs = zip(pools[0].classes.tolist(), pools[0].backgrounds.tolist())
        drawn = {(emoji_grammar.CLASSES[c], emoji_grammar.BACKGROUNDS[b]) for c, b in pairs}
        assert len(drawn) > 200
        assert not drawn & emoji_grammar.HELD_OUT
        assert torch.equal(pools[0].images, pools[1].images)

    def test_captions_tokenise_as_in_the_pipeline(self):
        from tools.emoji_turbo.base import tokenise

        for text in ("", "cat", "an owl on a pink background"):
            ours = pipeline().tokenizer(text, padding="max_length", truncation=True, max_length=8).input_ids
            assert tokenise(text) == ours

    def test_interrupted_training_resumes_to_the_same_weights(self, tmp_path):
        from tools.emoji_turbo.training import Plan, Trainer, Worker

        def train(folder, stop_at=None):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2))
            plan = Plan(iterations=6, batch=4, seed=1)
            trainer = Trainer("t", {"model": model}, plan, folder, Worker(), checkpoint_every=2)

            def loss_function(generator, count):
                if stop_at is not None and trainer.iteration == stop_at:
                    raise KeyboardInterrupt
                return model(torch.randn(count, 4, generator=generator)).square().mean(), {}

            try:
                trainer.run(loss_function)
            except KeyboardInterrupt:
                return None
            return torch.cat([p.flatten() for p in trainer.average["model"].parameters()])

        (tmp_path / "whole").mkdir()
        (tmp_path / "broken").mkdir()
        whole = train(tmp_path / "whole")
        assert train(tmp_path / "broken", stop_at=5) is None
        assert torch.equal(train(tmp_path / "broken"), whole)
