"""What the embedded model can talk about: its classes, backgrounds, captions and held-out combinations.

Everything that trains, prompts or scores `emoji-turbo` shares this vocabulary: the training recipe in
``tools/emoji_turbo``, the prompt lists and the rewards. The module needs no torch, so that listing prompts
stays cheap.
"""

import re
from functools import lru_cache

_ANIMAL_WORDS = """
cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf lizard beetle ant
butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken duck goose bee pig turkey fly llama
camel bat gorilla hedgehog kangaroo
"""
ANIMALS: tuple[str, ...] = tuple(_ANIMAL_WORDS.split())
"""The 45 simple animals of DDPO and SDPO, in their order."""

_EXTRA_WORDS = """
panda koala penguin owl elephant crab octopus snail dragon unicorn
apple banana strawberry car bus bicycle rocket tree flower house
"""
EXTRA: tuple[str, ...] = tuple(_EXTRA_WORDS.split())
"""Classes the model knows from its own training but that no RL prompt list trains on."""

CLASSES: tuple[str, ...] = ANIMALS + EXTRA

BACKGROUND_COLORS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (214, 69, 65),
    "orange": (240, 150, 60),
    "yellow": (248, 220, 100),
    "green": (110, 185, 110),
    "blue": (95, 150, 225),
    "purple": (150, 110, 200),
    "pink": (245, 175, 200),
    "gray": (150, 150, 150),
    "black": (30, 30, 34),
}
"""Background names and their 8-bit RGB; white is what a caption without a background mostly means."""

BACKGROUNDS: tuple[str, ...] = tuple(BACKGROUND_COLORS)

STYLES: tuple[str, ...] = ("noto", "twemoji", "fluent flat", "fluent 3d")
"""Drawing styles of the training pictures; no caption names them."""


def held_out_background(animal: str) -> str:
    """The one background that ``animal`` never has in the model's training.

    The rule walks the nine coloured backgrounds in steps of four, starting at blue, so each is held out for
    five animals. White stays in for all of them: a picture whose caption names no background is mostly on
    white.
    """
    coloured = BACKGROUNDS[1:]
    return coloured[(4 + 4 * ANIMALS.index(animal)) % len(coloured)]


HELD_OUT: frozenset[tuple[str, str]] = frozenset((animal, held_out_background(animal)) for animal in ANIMALS)
"""Pairs (animal, background) that occur in no training caption or picture of the model."""

SPECIAL_TOKENS: tuple[str, ...] = ("<|startoftext|>", "<|endoftext|>", "<unk>")
MAX_TOKENS = 8
"""Length of a tokenised prompt, begin and end marks included."""


def vocabulary() -> dict[str, int]:
    """Word to token id of the text encoder; every other word is ``<unk>``."""
    words = (*SPECIAL_TOKENS, "a", "an", "on", "background", *BACKGROUNDS, *CLASSES)
    return {word: index for index, word in enumerate(words)}


def article(word: str) -> str:
    """``an`` before a vowel letter, else ``a``."""
    return "an" if word[0] in "aeiou" else "a"


def caption(name: str, background: str | None = None, *, with_article: bool = True) -> str:
    """A prompt of the trained form: ``cat``, ``a cat`` or ``a cat on a blue background``."""
    text = f"{article(name)} {name}" if with_article else name
    return text if background is None else f"{text} on {article(background)} {background} background"


_PLURALS = {f"{name}s": name for name in CLASSES} | {"mice": "mouse", "wolves": "wolf", "geese": "goose"}
_BACKGROUND = re.compile(rf"\b({'|'.join(BACKGROUNDS)})\s+background\b")


@lru_cache(maxsize=4096)
def parse_prompt(prompt: str) -> tuple[str | None, str | None]:
    """The class and the background that a prompt names, each ``None`` if it names none.

    The first word that is a class (or its plural) counts; a colour is a background only before the word
    ``background``, so that "a red car" asks for no background.
    """
    text = prompt.lower()
    words = re.findall(r"[a-z]+", text)
    classes = (_class_of(word) for word in words)
    first = next((name for name in classes if name), None)
    match = _BACKGROUND.search(text)
    return first, match.group(1) if match else None


def _class_of(word: str) -> str | None:
    return word if word in CLASSES else _PLURALS.get(word)
