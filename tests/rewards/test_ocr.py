"""The reward for rendered text: which text is the target, the formula, and pictures with text of known spelling."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from sdpo_bench.errors import UsageError
from sdpo_bench.rewards import ocr
from sdpo_bench.rewards.ocr import Ocr, OcrSettings, edit_distance, target_text, text_score

installed = pytest.mark.skipif(Ocr.unavailable() is not None, reason="the extra 'ocr' is not installed")


def picture(text):
    """``[1, 3, 256, 512]``: black text on white."""
    image = Image.new("RGB", (512, 256), "white")
    ImageDraw.Draw(image).text((40, 80), text, fill="black", font=ImageFont.load_default(size=72))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)],  # Levenshtein's examples
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("target", "text", "score"),
    [
        ("HELLO", "hello", 1.0),
        ("New York", "NEWYORK", 1.0),
        ("HELLO", "HELP", 1 - 2 / 5),
        ("HELLO", "", 0.0),
        ("AB", "something else", 0.0),  # 1 - 13 / 2 would be negative
        ("OPEN", "We are OPEN today", 0.0),  # 10 letters too many; 1 in Flow-GRPO's code, which looks for the target
    ],
)
def test_the_score_is_one_less_the_share_of_wrong_characters(target, text, score):
    assert text_score(target, text) == pytest.approx(score)


@pytest.mark.parametrize(
    ("target", "text", "score"),
    [
        ("OPEN", "We are OPEN today", 1.0),
        ("New York", "NEWYORKERS", 1.0),
        ("OPEN", "open", 1.0),
        ("OPEN", "OPE N", 1.0),  # spaces are removed before it is looked for
        ("OPEN", "OPXN", 1 - 1 / 4),  # one substitution: not contained, so as with the distance
        ("OPEN", "We are OPXN today", 0.0),  # distance 11, cut at the length of the target
        ("We are OPEN", "OPEN", 1 - 5 / 9),  # the target contains the text, not the other way round
        ("OPEN", "", 0.0),
    ],
)
def test_text_that_contains_the_target_is_right_in_flow_grpos_code(target, text, score):
    """yifan123/flow_grpo ac4c86e, flow_grpo/ocr.py: ``if prompt in recognized_text: dist = 0``."""
    assert text_score(target, text, "contains") == pytest.approx(score)


def test_the_target_is_the_first_quoted_text():
    assert target_text('a sign that says "OPEN 24" and "CLOSED"') == "OPEN 24"
    assert target_text("a shop named “Zoë’s”") == "Zoë’s"


@pytest.mark.parametrize("prompt", ["a cat", 'a sign ""', 'one quote " alone', 'a sign "  "'])
def test_a_prompt_without_a_target_is_named(prompt):
    with pytest.raises(UsageError, match="between double quotes") as error:
        Ocr()(picture("X"), [prompt])
    assert repr(prompt) in str(error.value)


@installed
def test_text_in_pictures_is_read_and_scored():
    images = torch.cat([picture("HELLO"), picture("HELLO"), torch.zeros(1, 3, 256, 512)])
    prompts = ['a sign "Hello"', 'a sign "HELP"', 'a sign "HELLO"']
    # HELLO -> HELP: delete O, replace the second L by P: 2 of 4 characters. A black picture has no text.
    assert Ocr()(images, prompts).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert Ocr().full_version.startswith("1+rapidocr-")


def test_scores_by_containment_have_a_version_of_their_own(monkeypatch):
    """Of pictures that read OPENED: 2 deletions from OPEN; 5 edits from HELP, more than it has characters."""
    monkeypatch.setattr(Ocr, "unavailable", classmethod(lambda cls: None))
    monkeypatch.setattr(Ocr, "read", lambda self, images: ["OPENED"] * len(images))
    monkeypatch.setattr(ocr, "version", lambda package: "9.9")
    whole, contained = Ocr(), Ocr(OcrSettings(match="contains"))
    images, prompts = torch.zeros(2, 3, 8, 8), ['a sign "OPEN"', 'a sign "HELP"']
    assert whole(images, prompts).tolist() == [0.5, 0.0]
    assert contained(images, prompts).tolist() == [1.0, 0.0]
    assert (whole.full_version, contained.full_version) == ("1+rapidocr-9.9", "1+contains+rapidocr-9.9")


def test_the_way_of_matching_is_in_the_version_alone():
    """So that runs of the default keep the id from before there was a choice."""
    assert Ocr().identity_settings == {}
