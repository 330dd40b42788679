"""Image features of CLIP rewards: those that are scored, and nearly those with a gradient to the images."""

import pytest
import torch
from reward_fixtures import new_reward, prompts, reward
from torch.nn import functional as F

from sdpo_bench.errors import UsageError
from sdpo_bench.rewards._clip import cosine
from sdpo_bench.rewards._clip_features import smooth_clip_pixels
from sdpo_bench.rewards._images import clip_pixels, to_bytes
from sdpo_bench.scoring.make_scorers import supervise
from sdpo_bench.scoring.variety import Variety

NAMES = ["aesthetic", "clipscore", "hpsv2", "pickscore"]


@pytest.fixture
def images():
    torch.manual_seed(0)
    coarse = torch.rand(5, 3, 6, 8)  # smooth, as pictures are
    return (F.interpolate(coarse, (96, 128), mode="bicubic").clamp(0, 1) * 255).round() / 255


def test_scores_follow_from_the_features(images):
    texts = prompts()[:5]
    for name, scale in (("clipscore", 2.5), ("pickscore", None), ("hpsv2", 1.0)):
        made = reward(name)
        angles = cosine(made.features(images), made.clip.text_features(texts))
        expected = made.clip.logit_scale * angles if scale is None else scale * angles
        if name == "clipscore":
            expected = expected.clamp(min=0)
        torch.testing.assert_close(expected.detach().cpu(), made(images, texts), rtol=1e-5, atol=1e-6)
    made = reward("aesthetic")
    scores = made.model.head(F.normalize(made.features(images), dim=-1))[:, 0]
    torch.testing.assert_close(scores, made(images, texts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_with_a_gradient_they_are_nearly_the_same(name, images):
    exact = reward(name).features(images)
    followed = images.clone().requires_grad_()
    smooth = reward(name).features(followed)
    assert not exact.requires_grad and exact.shape == smooth.shape
    assert torch.cosine_similarity(exact, smooth.detach()).min() > 0.999
    smooth.square().sum().backward()
    assert torch.isfinite(followed.grad).all() and (followed.grad.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("shape", [(96, 128), (128, 96), (100, 100), (224, 301), (301, 225)])
def test_the_smooth_resize_is_pillows_but_for_rounding(shape):
    torch.manual_seed(1)
    picture = F.interpolate(torch.rand(1, 3, 6, 7), shape, mode="bicubic").clamp(0, 1)
    expected = clip_pixels(to_bytes(picture))
    found = smooth_clip_pixels(to_bytes(picture).float() / 255)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 2.5 / 255 / 0.26  # rounded once after each of two passes


def test_features_do_not_depend_on_the_batch(images):
    for name in NAMES:
        whole, alone = (new_reward(name, batch_size=size).load() for size in (16, 1))
        torch.testing.assert_close(whole.features(images), alone.features(images), rtol=1e-4, atol=1e-5)


def test_variety_is_measured_by_them(images):
    scorer = supervise("variety:clipscore", Variety("clipscore", reward("clipscore")))
    assert scorer.features(images).shape == reward("clipscore").features(images).shape
    assert scorer.reward.full_version == f"1:{reward('clipscore').full_version}"


def test_the_official_package_has_none():
    with pytest.raises(UsageError, match="reward 'hpsv2' exposes none"):
        Variety("hpsv2", new_reward("hpsv2", backend="official"))
