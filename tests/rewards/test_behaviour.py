"""What a score depends on and what it does not, what a reward refuses, and which version its scores carry."""

import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from reward_fixtures import PATHS, damaged_copy, new_reward, paired_scores, prompts, reward

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import find
from sdpo_bench.rewards import _images
from sdpo_bench.rewards._hps import clean_prompt
from sdpo_bench.rewards.altered import Altered, AlteredSettings

MODEL_REWARDS = sorted(PATHS)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.rand(5, 3, 40, 56), [*prompts()[:4], prompts()[0]]


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_a_score_depends_on_its_own_image_and_prompt_alone(name, batch):
    images, texts = batch
    whole = new_reward(name, batch_size=16)(images, texts)
    assert len({round(score, 4) for score in whole.tolist()}) > 1
    order = [3, 0, 4, 2, 1]
    for size in (1, 2, 3):
        turned = new_reward(name, batch_size=size)(images[order], [texts[i] for i in order])
        torch.testing.assert_close(turned, whole[order], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_scores_are_float32_on_the_cpu_without_gradient_even_under_autocast(name, batch):
    images, texts = batch
    plain = reward(name)(images, texts) if name != "hpsv2" else new_reward(name)(images, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = new_reward(name)(images.requires_grad_(), texts)
    assert (mixed.dtype, mixed.device.type, mixed.requires_grad) == (torch.float32, "cpu", False)
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


def test_tf32_is_off_while_scoring_and_as_before_afterwards(batch, monkeypatch):
    seen = []
    made = new_reward("aesthetic").load()
    monkeypatch.setattr(made, "_score", lambda *_: seen.append(tf32()) or torch.zeros(5))
    torch.set_float32_matmul_precision("high")
    try:
        before = tf32()
        made(*batch)
        assert (seen, tf32()) == ([("ieee", "ieee")], before)
        assert before != ("ieee", "ieee")
    finally:
        torch.set_float32_matmul_precision("highest")


def tf32():
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    return conv.fp32_precision, matmul.fp32_precision


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_an_empty_batch_has_no_scores(name):
    assert new_reward(name)(torch.zeros(0, 3, 8, 8), []).shape == (0,)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (torch.zeros(3, 8, 8), ["a"] * 3, r"\[B, 3, H, W\]"),
        (torch.zeros(1, 4, 8, 8), ["a"], r"\[B, 3, H, W\].*\[1, 4, 8, 8\]"),
        (torch.zeros(1, 3, 0, 8), ["a"], r"\[1, 3, 0, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"], "torch.uint8"),
        ([[0.0]], ["a"], "list"),
        (torch.zeros(2, 3, 8, 8), ["a"], "1 prompts for 2 images"),
        (torch.zeros(1, 3, 8, 8), "a", "one string for 1 images"),
        (torch.full((1, 3, 8, 8), torch.nan), ["a"], "NaN"),
    ],
)
def test_wrong_input_is_named_before_anything_is_loaded(images, texts, message):
    plugin = find("rewards", "hpsv2").load()
    with pytest.raises(UsageError, match=message):
        plugin(plugin.Settings(path="/no/such/file"))(images, texts)


def test_floats_become_bytes_by_rounding_and_clamping():
    values = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 1.0, 1.7]).view(1, 1, 1, 8)
    assert _images.to_bytes(values).flatten().tolist() == [0, 0, 0, 1, 128, 255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_any_mode_become_three_channels(mode):
    grey = Image.new("RGB", (6, 4), (200, 200, 200))
    picture = grey.quantize() if mode == "P" else grey.convert(mode)
    assert picture.mode == mode
    found = _images.from_pil(picture)
    assert found.shape == (1, 3, 4, 6)
    assert (found * 255 - 200).abs().max() <= 1


def test_a_wide_picture_of_224_is_padded_to_a_square():
    """The official transform returns 150 rows here, and its model fails on them."""
    pixels = _images.padded_pixels(torch.full((1, 3, 150, 224), 255, dtype=torch.uint8))
    black, white = (_images.normalise(torch.full((3, 1, 1), value))[0, 0, 0] for value in (0.0, 1.0))
    assert pixels.shape == (1, 3, 224, 224)
    rows = pixels[0, 0, :, 100]
    assert (rows[37:187] == white).all()
    assert (rows[:37] == black).all()
    assert (rows[187:] == black).all()


@pytest.mark.parametrize(
    ("name", "settings", "version"),
    [
        ("hpsv2", {}, "1"),
        ("hpsv2", {"preprocessing": "sdpo"}, "1+sdpo"),
        ("hpsv2", {"preprocessing": "official-2023", "precision": "bf16"}, "1+official-2023+bf16"),
        ("hpsv2", {"backend": "official", "revision": "abc"}, "1+official-package+rev-abc"),
        ("imagereward", {"preprocessing": "sdpo"}, "1+sdpo"),
        ("pickscore", {"preprocessing": "sdpo", "batch_size": 2}, "1+sdpo"),
        ("clipscore", {"form": "cosine", "prefix": "A photo depicts "}, "1+cosine+prefix-'A photo depicts '"),
        ("aesthetic", {}, "1"),
    ],
)
def test_whatever_changes_a_score_is_in_the_version(name, settings, version):
    plugin = find("rewards", name).load()
    assert plugin(validate(plugin.Settings, settings, "reward")).full_version == version


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_other_weights_are_another_version(name, tmp_path):
    def nudge(state):
        key = max(state)
        state[key] = state[key] + 1

    changed = new_reward(name, path=str(damaged_copy(name, tmp_path / "copy", nudge)))
    assert changed.full_version.startswith("1+file-")
    assert changed.full_version != new_reward(name).full_version


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_bfloat16_is_near_float32_and_not_it(name):
    full, half = paired_scores(name), paired_scores(name, precision="bf16")
    scale = full.abs().max()
    assert 1e-6 < (half - full).abs().max() / scale < 0.05


def test_pickscores_scale_is_exact_in_bfloat16():
    """Rounded to bfloat16 before the exponential, 100 would be 98.9."""
    scales = [reward("pickscore", precision=precision).model.logit_scale for precision in ("fp32", "bf16")]
    assert scales[0] == scales[1]


def test_a_clipscore_prefix_stands_before_every_prompt(batch):
    images, texts = batch
    made = new_reward("clipscore", form="cosine", prefix="A photo depicts ")(images, texts)
    longer = [f"A photo depicts {text}" for text in texts]
    torch.testing.assert_close(made, new_reward("clipscore", form="cosine")(images, longer), rtol=0, atol=0)
    assert (made - new_reward("clipscore", form="cosine")(images, texts)).abs().max() > 1e-4


def test_hps_prompts_are_cleaned_as_by_the_official_tokenizer():
    """Entities twice (ftfy leaves them alone where the text has a ``<``), white space to one space, lower case."""
    assert clean_prompt("  A &amp;amp; B\u00a0\t&lt;C&gt; <D>\n") == "a & b <c> <d>"


def test_the_official_hpsv2_package_is_asked_with_our_checkpoint(batch, monkeypatch):
    calls = []

    def score(image, prompt, cp, hps_version):
        calls.append((image.size, prompt, Path(cp).name, hps_version))
        return [len(calls) / 8]

    package = types.ModuleType("hpsv2")
    package.img_score = types.ModuleType("hpsv2.img_score")
    package.img_score.score = score
    monkeypatch.setitem(sys.modules, "hpsv2", package)
    monkeypatch.setitem(sys.modules, "hpsv2.img_score", package.img_score)
    images, texts = batch
    assert new_reward("hpsv2", backend="official")(images, texts).tolist() == [i / 8 for i in range(1, 6)]
    assert calls == [((56, 40), text, "HPS_tiny_compressed.pt", "v2.0") for text in texts]


def test_the_official_imagereward_package_is_asked_with_our_checkpoint(batch, monkeypatch):
    loaded = []

    def load(name, device, med_config):
        loaded.append((Path(name).name, device, Path(med_config).name))
        return types.SimpleNamespace(score=lambda prompt, image: len(prompt) + image.width / 1000)

    monkeypatch.setitem(sys.modules, "ImageReward", types.SimpleNamespace(load=load))
    images, texts = batch
    scores = new_reward("imagereward", backend="official")(images, texts)
    assert scores.tolist() == pytest.approx([len(text) + 0.056 for text in texts])
    assert loaded == [("ImageReward_tiny.pt", "cpu", "med_config.json")]


@pytest.mark.parametrize(("name", "module"), [("hpsv2", "hpsv2.img_score"), ("imagereward", "ImageReward")])
def test_an_official_package_that_is_not_here_is_named_with_its_requirements(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    made = new_reward(name, backend="official")
    with pytest.raises(MissingError, match=r"pip install -r (\S+)\)") as caught:
        made(torch.zeros(1, 3, 8, 8), ["a"])
    file = str(caught.value).split("pip install -r ")[1].split(")")[0]
    assert (Path(__file__).parents[2] / file).is_file()
    with pytest.raises(UsageError, match="preprocessing=official"):
        new_reward(name, backend="official", preprocessing="sdpo").load()


def test_versions_of_altered_rewards_tell_all_numbers_apart():
    """Base scores are remembered by version; six digits would give these two one."""
    versions = [
        Altered(AlteredSettings(of="jpeg-compressibility", offset=offset), "cpu").full_version
        for offset in (1234567.4, 1234567.9, 0.5)
    ]
    assert len(set(versions)) == 3 and versions[2].endswith("offset=0.5")
