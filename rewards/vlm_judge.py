"""A vision-language model as judge, behind any OpenAI-compatible chat server (vLLM, SGLang, Ollama, a paid service).

The server gets one request an image: the picture as a PNG data URL, and a question with the prompt in it. A regular
expression finds the score in the answer.
"""

import base64
import os
import re
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from annotated_types import Ge, Gt
from PIL import Image

from sdpo_bench.api import Execution, Reward
from sdpo_bench.errors import MissingError, RunFailed, UsageError
from sdpo_bench.hashing import digest
from sdpo_bench.system.json_toml import parse_json

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_URL = "http://127.0.0.1:8000/v1"
QUESTION = (
    "Does the image show what this text describes?\nText: {prompt}\n"
    "Judge how well it matches, from 0 (not at all) to 10 (exactly, and well drawn). "
    "End your answer with one line: Score: NUMBER"
)
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 1.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
BUSY = (408, 429, 500, 502, 503, 504)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class JudgeSettings:
    """Which model judges, what it is asked, and how its answer becomes a number."""

    url: Execution[str] = DEFAULT_URL
    """Address of the server up to and with its version, e.g. http://127.0.0.1:8000/v1."""
    model: str = ""
    """Name of the model, as the server knows it; must be given."""
    template: str = QUESTION
    """The question; {prompt} stands for the image's prompt."""
    pattern: str = r"Score:\s*\**\s*(-?\d+(?:\.\d+)?)"
    """Regular expression whose first group is the number; its last match in the answer counts. Capitals do not."""
    scale: Annotated[float, Gt(0)] = 10.0
    """The best number; the score is number / scale, and numbers outside 0 to scale are refused."""
    max_tokens: Annotated[int, Ge(1)] = 256
    """Most tokens of an answer."""
    key_variable: Execution[str] = ""
    """Environment variable with the server's API key; unset: no key is sent."""
    parallel: Execution[Annotated[int, Ge(1)]] = 8
    """Requests at once."""
    timeout: Execution[Annotated[float, Gt(0)]] = 120.0
    """Seconds to wait for one answer."""
    retries: Execution[Annotated[int, Ge(0)]] = 4
    """Further attempts where the server is away or busy, or its answer has no score; after 0.5, 1, 2, ... seconds."""


class BadAnswer(Exception):
    """An answer that holds no score; asked again."""


class Away(BadAnswer):
    """No answer at all, or one that says to come again later."""


class VlmJudge(Reward):
    """A score that a vision-language model behind an OpenAI-compatible chat server gives to image and prompt."""

    name = "vlm-judge"
    Settings = JudgeSettings
    version = "1"
    scale = "share of the judge's best number, 0 to 1"
    source = "the judge's model; chat completions of the OpenAI HTTP interface"
    native_model = "sd-turbo"

    def __init__(self, settings: Any, device: str = "cpu"):
        super().__init__(settings, device)
        parts = urlsplit(settings.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"reward.url = '{settings.url}' is not an address. Example: {DEFAULT_URL}")
        if not settings.model:
            raise UsageError("the reward 'vlm-judge' needs the judge's name: --set reward.model=NAME")
        if "{prompt}" not in settings.template:
            raise UsageError("reward.template has no {prompt}: the judge would not know what the image should show.")
        try:
            self._number = re.compile(settings.pattern, re.IGNORECASE)
        except re.error as error:
            raise UsageError(f"reward.pattern = '{settings.pattern}' is not a regular expression: {error}.") from error
        if self._number.groups < 1:
            raise UsageError(f"reward.pattern = '{settings.pattern}' has no group; put the number in parentheses.")

    @classmethod
    def unavailable(cls) -> str | None:
        if _http() is None:
            return "needs the package httpx2; type: pip install 'sdpo-bench[judge]'"
        parts = urlsplit(DEFAULT_URL)
        try:
            socket.create_connection((parts.hostname or "", parts.port or 80), timeout=PROBE_SECONDS).close()
        except OSError:
            return (
                f"no server at {DEFAULT_URL}; name one with --set reward.url=URL and its model with reward.model=NAME"
            )
        return "the judge's model is not chosen; name it with --set reward.model=NAME"

    @property
    def full_version(self) -> str:
        """``version``, the judge, and a digest of the question and of how its answer is read."""
        s = self.settings
        return f"{self.version}+{s.model}+{digest([s.template, s.pattern, s.scale, s.max_tokens])[:8]}"

    def load(self) -> "VlmJudge":
        if _http() is None:
            raise MissingError("the reward 'vlm-judge' needs the package httpx2. Type: pip install 'sdpo-bench[judge]'")
        self._headers  # noqa: B018  # a key that is not there is found before anything is sampled
        return self

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        """Scores ``[B]`` in [0, 1].

        Raises:
            MissingError: the server cannot be reached. RunFailed: it refuses, or its answers hold no score.
        """
        import torch

        self.load()
        pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        pictures = [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            scores = list(pool.map(self._score, pictures, prompts))
        return torch.tensor(scores, dtype=torch.float32)

    def _score(self, picture: Image.Image, prompt: str) -> float:
        """The score of one image, asked for until the answer holds one."""
        problem: BadAnswer = Away()
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))
            try:
                return self._number_in(self._ask(picture, prompt))
            except BadAnswer as error:
                problem = error
        tries = f"{self.settings.retries + 1} attempts"
        if isinstance(problem, Away):
            raise MissingError(
                f"the judge at {self.settings.url} cannot be reached ({problem}; {tries}). Start its server or give "
                "its address with --set reward.url=URL; the same command then goes on."
            )
        raise RunFailed(
            f"the judge at {self.settings.url} gave no score for the prompt {prompt!r}: {problem} ({tries}). Change "
            "reward.template or reward.pattern, or raise reward.max_tokens."
        )

    def _number_in(self, answer: str) -> float:
        """Score in the text of an answer.

        Raises:
            BadAnswer: no number, or one outside the scale.
        """
        matches = list(self._number.finditer(answer))
        shown = " ".join(answer.split())[-200:]
        try:
            number = float(matches[-1][1])
        except (IndexError, TypeError, ValueError):
            raise BadAnswer(f"the answer {shown!r} has no number where reward.pattern looks for it") from None
        if not 0 <= number <= self.settings.scale:
            raise BadAnswer(f"the answer {shown!r} is outside 0 to {self.settings.scale:g} (reward.scale)")
        return number / self.settings.scale

    def _ask(self, picture: Image.Image, prompt: str) -> str:
        """The text of one answer.

        Raises:
            Away: no answer, or a busy server. BadAnswer: one of another form. RunFailed: a refusal.
        """
        url = self.settings.url.rstrip("/") + "/chat/completions"
        try:
            answer = self._client.post(url, json=self._request(picture, prompt), headers=self._headers)
        except _http().TransportError as error:
            raise Away(f"{type(error).__name__}: {error}") from error
        if answer.status_code in BUSY:
            raise Away(f"status {answer.status_code}")
        beginning = " ".join(answer.text.split())[:200]
        if answer.status_code != 200:
            raise RunFailed(f"the judge at {self.settings.url} answered {answer.status_code}: {beginning}")
        try:
            choice = parse_json(answer.content)["choices"][0]
            text = str(choice["message"]["content"])
        except (ValueError, LookupError, TypeError):
            raise BadAnswer(f"what it sent is no chat completion: {beginning!r}") from None
        if choice.get("finish_reason") == "length":  # cut inside "Score: 10" it would be a 1
            raise BadAnswer(f"the answer was cut at max_tokens={self.settings.max_tokens}: {text[-80:]!r}")
        return text

    def _request(self, picture: Image.Image, prompt: str) -> dict[str, Any]:
        buffer = BytesIO()
        picture.save(buffer, format="PNG")
        image = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": self.settings.template.replace("{prompt}", prompt)},
        ]
        return {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": self.settings.max_tokens,
        }

    @cached_property
    def _headers(self) -> dict[str, str]:
        variable = self.settings.key_variable
        if not variable:
            return {}
        if variable not in os.environ:
            raise MissingError(
                f"reward.key_variable: the environment has no variable '{variable}'. Type: export {variable}=KEY"
            )
        return {"authorization": f"Bearer {os.environ[variable]}"}

    @cached_property
    def _client(self) -> Any:
        http = _http()
        local = urlsplit(self.settings.url).hostname in LOOPBACK
        patience = http.Timeout(self.settings.timeout, connect=CONNECT_SECONDS)
        # A proxy does not know this machine's loopback.
        return http.Client(timeout=patience, trust_env=not local)


def _http() -> Any:
    try:
        import httpx2
    except ImportError:
        return None
    return httpx2
