"""The reward without a reference: PIQE of known pictures, its direction, and its messages."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from sdpo_bench.api import NoSettings
from sdpo_bench.errors import MissingError
from sdpo_bench.rewards import piqe as module
from sdpo_bench.rewards.piqe import Piqe

installed = pytest.mark.skipif(Piqe.unavailable() is not None, reason="the extra 'piqe' is not installed")


@pytest.fixture(scope="module")
def photograph():
    """A part of 256x256 pixels of the photograph that comes with matplotlib."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return Image.open(path).convert("RGB").crop((100, 60, 356, 316))


def tensor_of(*pictures):
    """``[B, 3, H, W]`` in [0, 1]."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255


def scores(*pictures):
    return Piqe(NoSettings())(tensor_of(*pictures), [""] * len(pictures)).tolist()


def noisy(picture, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, (256, 256, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


@installed
def test_blur_and_noise_lower_the_score(photograph):
    blurred = [photograph.filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 1.5, 2)]
    for worse in (blurred, [noisy(photograph, deviation) for deviation in (10, 20, 40)]):
        found = scores(photograph, *worse)
        assert found == sorted(found, reverse=True)
        assert found[0] - found[-1] > 30


@installed
def test_it_is_minus_the_packages_number_on_the_bytes_of_a_picture(photograph):
    from pypiqe import piqe

    grey = photograph.convert("L").convert("RGB")  # equal channels: their order does not matter
    expected = -piqe(np.asarray(grey))[0]
    assert scores(grey) == pytest.approx([expected], abs=1e-4)
    for shift in (-0.4, 0.4):  # of a byte: rounding gives the same bytes, cutting off would not
        shifted = (tensor_of(grey) + shift / 255).clamp(0, 1)
        assert Piqe(NoSettings())(shifted, [""]).tolist() == pytest.approx([expected], abs=1e-4)


@installed
def test_channels_have_the_weights_of_red_green_and_blue(photograph):
    """Noise in blue, which has a weight of .114 in grey, costs less than noise in red, .299."""
    from pypiqe import piqe

    pixels = np.asarray(photograph).copy()
    pixels[..., 1] = 0
    pixels[..., 2] = np.random.default_rng(0).integers(0, 255, (256, 256))
    grey = -piqe(np.asarray(Image.fromarray(pixels).convert("L")))[0]  # Pillow: .299 R + .587 G + .114 B
    right, swapped = scores(pixels, pixels[..., ::-1])
    assert right == pytest.approx(grey, abs=0.5)
    assert swapped < right - 5


@installed
def test_a_picture_without_detail_has_the_worst_score():
    """No block has detail: (0 + 1) / (1 + 0) x 100, with the constant 1 of the paper's last equation."""
    flat = [np.full((40, 64, 3), value, np.uint8) for value in (0, 128, 255)]
    with np.errstate(all="raise"):
        assert scores(*flat) == [-100.0, -100.0, -100.0]


@installed
def test_a_score_is_of_one_picture_whatever_the_batch(photograph):
    pictures = [photograph, noisy(photograph, 20)]
    assert scores(*pictures) == [scores(pictures[0])[0], scores(pictures[1])[0]]
    assert Piqe(NoSettings()).full_version.startswith("1+pypiqe-")


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert "sdpo-bench[piqe]" in Piqe.unavailable()
    for ask in (Piqe(NoSettings()).load, lambda: Piqe(NoSettings()).full_version):
        with pytest.raises(MissingError, match=r"pip install 'sdpo-bench\[piqe\]'") as caught:
            ask()
        assert caught.value.exit_code == 3
