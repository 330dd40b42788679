"""Every recorded number of the official reward code is reproduced, array by array, within its tolerance.

Arrays named ``trap_*`` are what a common mistake gives; ours must be far from them.
"""

import hashlib
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from reward_fixtures import (
    ROOT,
    TINY_TABLE,
    clip_table,
    images,
    inputs,
    names,
    paired_scores,
    pictures,
    prompts,
    recorded,
    reward,
    score_matrix,
)
from torch.nn import functional as F

from sdpo_bench.rewards import _images
from sdpo_bench.rewards._clip import clip_tokenizer
from sdpo_bench.rewards._hps import hps_tokenizer

HPS, BLIP, PICK, AESTHETIC = (f"{part}/expected.npz" for part in ("hpsv2", "imagereward", "pickscore", "aesthetic"))
CLIP_PIXELS = "common/clip_pixels.npz"
Case = tuple[Callable[[], torch.Tensor | np.ndarray], float]
CASES: dict[str, dict[str, Case]] = {}


@cache
def pixels(name: str, **settings) -> torch.Tensor:
    return torch.cat([reward(name, **settings).pixels(picture) for picture in pictures()])


@cache
def clip_pixels() -> torch.Tensor:
    return torch.cat([_images.clip_pixels(picture) for picture in pictures()])


def grid(values: torch.Tensor) -> torch.Tensor:
    return values[..., 2::4, 2::4]


def as_bytes(values: torch.Tensor) -> torch.Tensor:
    """The 8-bit picture ``[B, h, w, 3]`` behind normalised pixels."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (_images.MEAN, _images.STD))
    return ((values * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def pixel_cases(make: Callable[[], torch.Tensor], tolerance: float, prefix: str = "") -> dict[str, Case]:
    return {
        f"{prefix}pixel_grid": (lambda: grid(make()), tolerance),
        f"{prefix}pixel_row_mean": (lambda: make().double().mean(-1), tolerance),
        f"{prefix}pixel_col_mean": (lambda: make().double().mean(-2), tolerance),
    }


# hpsv2


def hps_ids() -> torch.Tensor:
    folder = clip_table()
    if folder is None:
        pytest.skip("other prompts than the excerpt's: name the full table in SDPO_BENCH_CLIP_TABLE")
    return ids_of(hps_tokenizer(folder))


def ids_of(tokenize) -> torch.Tensor:
    return torch.cat([tokenize(prompt)["input_ids"] for prompt in prompts()])


@cache
def hps_image(**settings) -> torch.Tensor:
    return reward("hpsv2").model.image_features(pixels("hpsv2", **settings))


@cache
def hps_text() -> torch.Tensor:
    return reward("hpsv2").model.text_features(prompts())


def extreme(which: str) -> torch.Tensor:
    return getattr(pixels("hpsv2").flatten(1), which)(1).values


OLD, SDPO = {"preprocessing": "official-2023"}, {"preprocessing": "sdpo"}
CASES[HPS] = {
    "token_ids": (hps_ids, 0),
    "tiny_bpe_token_ids": (lambda: ids_of(hps_tokenizer(TINY_TABLE)), 0),
    **pixel_cases(lambda: pixels("hpsv2"), 2e-5),
    "pixel_min": (lambda: extreme("min"), 2e-5),
    "pixel_max": (lambda: extreme("max"), 2e-5),
    "image_features_raw": (lambda: hps_image(), 5e-5),
    "image_features": (lambda: F.normalize(hps_image(), dim=-1), 5e-6),
    "text_features_raw": (lambda: hps_text(), 5e-5),
    "text_features": (lambda: F.normalize(hps_text(), dim=-1), 5e-6),
    "scores_matrix": (lambda: score_matrix("hpsv2"), 5e-6),
    "scores_paired": (lambda: paired_scores("hpsv2"), 5e-6),
    "trap_scores_times_logit_scale": (lambda: score_matrix("hpsv2"), 5e-6),
    "noantialias_pixel_grid": (lambda: grid(pixels("hpsv2", **OLD)), 2e-5),
    "noantialias_image_features": (lambda: F.normalize(hps_image(**OLD), dim=-1), 5e-6),
    "noantialias_scores_matrix": (lambda: score_matrix("hpsv2", **OLD), 5e-6),
    "sdpo_pixel_row_mean": (lambda: pixels("hpsv2", **SDPO).double().mean(-1), 2e-5),
    "sdpo_image_features": (lambda: F.normalize(hps_image(**SDPO), dim=-1), 5e-6),
    "sdpo_scores_matrix": (lambda: score_matrix("hpsv2", **SDPO), 5e-6),
    "sdpo_scores_paired": (lambda: paired_scores("hpsv2", **SDPO), 5e-6),
}

# imagereward


@cache
def blip_tokens(**settings) -> torch.Tensor:
    return reward("imagereward").model.image_tokens(pixels("imagereward", **settings))


def blip_states(image: int) -> torch.Tensor:
    """``[prompt, place, :]`` for one image."""
    tokens = blip_tokens()[image].expand(len(prompts()), -1, -1)
    return reward("imagereward").model.text_states(tokens, *reward("imagereward").tokens(prompts()))


@cache
def blip_cls() -> torch.Tensor:
    return torch.stack([blip_states(image)[:, 0] for image in range(len(images()))])


def unmasked_states() -> torch.Tensor:
    """States of image 0; where the prompt is over they are not part of the comparison."""
    over = torch.from_numpy(recorded(BLIP)["attention_mask"]) == 0
    there = torch.from_numpy(recorded(BLIP)["text_hidden_s96"])
    return torch.where(over[..., None], there, blip_states(0))


def blip_raw() -> torch.Tensor:
    model = reward("imagereward").model
    return torch.stack([model.reward(states[:, None]) for states in blip_cls()])


def rank() -> torch.Tensor:
    return score_matrix("imagereward").argsort(0, descending=True).argsort(0) + 1


ODD = "w300x198"
CASES[BLIP] = {
    "input_ids": (lambda: reward("imagereward").tokens(prompts())[0], 0),
    "attention_mask": (lambda: reward("imagereward").tokens(prompts())[1], 0),
    **pixel_cases(lambda: pixels("imagereward"), 1e-6),
    f"pixel_u8_{ODD}": (lambda: as_bytes(pixels("imagereward"))[names().index(ODD)], 0),
    "image_cls": (lambda: blip_tokens()[:, 0], 2e-5),
    "image_tokens_mean": (lambda: blip_tokens().mean(1), 2e-5),
    "image_tokens_s96": (lambda: blip_tokens()[0], 2e-5),
    "text_cls": (lambda: blip_cls(), 5e-5),
    "text_hidden_s96": (unmasked_states, 5e-5),
    "reward_raw": (blip_raw, 1e-4),
    "reward": (lambda: score_matrix("imagereward"), 1e-4),
    "reward_paired": (lambda: paired_scores("imagereward"), 1e-4),
    "rank": (rank, 0),
    "trap_causal_text_cls": (lambda: blip_cls(), 5e-5),
    "trap_causal_reward_raw": (blip_raw, 1e-4),
    "trap_causal_reward": (lambda: score_matrix("imagereward"), 1e-4),
    "sdpo_image_cls": (lambda: blip_tokens(**SDPO)[:, 0], 2e-5),
    "sdpo_reward_raw": (lambda: score_matrix("imagereward", **SDPO), 1e-4),
    "sdpo_reward_raw_paired": (lambda: paired_scores("imagereward", **SDPO), 1e-4),
}

# pickscore


@cache
def pick_image() -> torch.Tensor:
    return reward("pickscore").model.image_features(clip_pixels())


@cache
def pick_text() -> torch.Tensor:
    return reward("pickscore").model.text_features(prompts())


def pick_mask() -> torch.Tensor:
    tokenize = clip_tokenizer(TINY_TABLE)
    return torch.cat([tokenize(prompt)["attention_mask"] for prompt in prompts()])


CASES[PICK] = {
    "token_ids": (lambda: ids_of(clip_tokenizer(TINY_TABLE)), 0),
    "attention_mask": (pick_mask, 0),
    "image_features_raw": (lambda: pick_image(), 5e-5),
    "image_features": (lambda: F.normalize(pick_image(), dim=-1), 5e-6),
    "text_features_raw": (lambda: pick_text(), 5e-5),
    "text_features": (lambda: F.normalize(pick_text(), dim=-1), 5e-6),
    "logit_scale_exp": (lambda: reward("pickscore").model.logit_scale, 2e-4),
    "scores_matrix": (lambda: score_matrix("pickscore"), 2e-4),
    "scores_paired": (lambda: paired_scores("pickscore"), 2e-4),
    "probs_over_images": (lambda: score_matrix("pickscore").softmax(0), 2e-4),
    "sdpo_scores_matrix": (lambda: score_matrix("pickscore", **SDPO), 5e-6),
    "sdpo_scores_paired": (lambda: paired_scores("pickscore", **SDPO), 5e-6),
}

# aesthetic and the CLIP processor


@cache
def aesthetic_features() -> torch.Tensor:
    return reward("aesthetic").model.clip.image_features(clip_pixels())


CASES[AESTHETIC] = {
    "image_features_raw": (lambda: aesthetic_features(), 5e-5),
    "image_features": (lambda: F.normalize(aesthetic_features(), dim=-1), 5e-6),
    "scores": (lambda: paired_scores("aesthetic"), 5e-6),
    "trap_unnormalised_scores": (lambda: paired_scores("aesthetic"), 5e-6),
}
CASES[CLIP_PIXELS] = {
    "pixel_u8": (lambda: as_bytes(clip_pixels()), 0),
    "pixel_values_grid": (lambda: grid(clip_pixels()), 1e-6),
}


@pytest.mark.parametrize("part", CASES)
def test_no_recorded_array_is_left_out(part):
    assert set(CASES[part]) == set(recorded(part))


@pytest.mark.parametrize(("part", "array"), [(part, array) for part in CASES for array in CASES[part]])
def test_the_official_number_is_reproduced(part, array):
    compute, tolerance = CASES[part][array]
    ours, theirs = np.asarray(compute(), dtype=np.float64), recorded(part)[array].astype(np.float64)
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs)
    if array.startswith("trap_"):
        assert np.median(difference) > 1000 * tolerance
    else:
        assert difference.max() <= tolerance


def test_the_pictures_are_read_as_they_were_recorded():
    for entry in inputs()["images"]:
        with Image.open(ROOT / "common" / entry["file"]) as picture:
            assert (picture.mode, *picture.size) == (entry["mode"], entry["width"], entry["height"])
            assert hashlib.sha256(picture.tobytes()).hexdigest() == entry["sha256_of_raw_pixels"]


def test_the_scaled_trap_is_our_score_times_the_logit_scale():
    """So the trap is the mistake that it is said to be, and the one thing between us and it is the scale."""
    scale = reward("hpsv2").model.logit_scale.item()
    theirs = recorded(HPS)["trap_scores_times_logit_scale"]
    assert np.abs(score_matrix("hpsv2").numpy() * scale - theirs).max() < 5e-6 * scale


def test_the_crop_of_odd_margins_tells_official_imagereward_from_the_clip_processor():
    odd = names().index(ODD)
    official, other = pixels("imagereward"), pixels("imagereward", **SDPO)
    differs = [(official[i] != other[i]).any().item() for i in range(len(official))]
    assert differs == [i == odd for i in range(len(official))]


def test_clipscore_is_two_and_a_half_times_the_positive_cosine():
    """Hessel et al. 2021, equation 1, on the cosines that the SDPO scorer gave for the same model."""
    cosines = recorded(PICK)["sdpo_scores_matrix"]
    assert np.abs(score_matrix("clipscore", form="cosine").numpy() - cosines).max() < 5e-6
    assert np.abs(score_matrix("clipscore").numpy() - 2.5 * cosines.clip(min=0)).max() < 2e-5
    assert (cosines < 0).any()
