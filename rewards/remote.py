"""A reward that another process computes: for scorers that are heavy or need libraries of their own.

``sdpo-bench serve-reward NAME`` is the other end. Where a score is computed is no part of what it is: results carry
the served reward's own name, version and settings, so they share tables with those of the same reward computed here,
and a run has the same id either way.
"""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import urlsplit

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from sdpo_bench.api import Execution, Reward
from sdpo_bench.errors import MissingError, RunFailed, UsageError
from sdpo_bench.scoring import http_format
from sdpo_bench.system.json_toml import parse_json

DEFAULT_URL = "http://127.0.0.1:8765"
URL_VARIABLE = "SDPO_BENCH_REWARD_URL"
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 1.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
BUSY = (408, 429, 502, 503, 504)
MOST_BYTES = 2**24
"""Of an answer: a few million scores; a sender of more is no reward service."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class RemoteSettings:
    """Where the service is and how patient to be; none of it changes a score."""

    url: Execution[str] = ""
    """Address of the service; unset: the variable SDPO_BENCH_REWARD_URL, else http://127.0.0.1:8765."""
    timeout: Execution[Annotated[float, Gt(0)]] = 300.0
    """Seconds to wait for the scores of one request, and for a service that says it is busy to take it."""
    retries: Execution[Annotated[int, Ge(0)]] = 4
    """Further attempts when the service cannot be reached or is busy, after 0.5, 1, 2, 4, 8, 8, ... seconds."""
    batch_size: Execution[Annotated[int, Ge(1)]] = 16
    """Most images in one request; fewer where the service's size limit asks for it."""


@dataclass(frozen=True)
class Answer:
    """What a service has answered, read whole."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


class Remote(Reward):
    """The reward of a service (sdpo-bench serve-reward), under that reward's own name and version."""

    name = "remote"
    Settings = RemoteSettings
    version = "1"
    scale = "that of the served reward"
    source = "that of the served reward"
    native_model = "sd-turbo"

    def __init__(self, settings: Any, device: str = "cpu"):
        super().__init__(settings, device)
        self.url = (settings.url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"reward.url = '{self.url}' is not an address. Example: {DEFAULT_URL}")

    @classmethod
    def unavailable(cls) -> str | None:
        if not _http():
            return "needs the package httpx2; type: pip install 'sdpo-bench[serve]'"
        url = os.environ.get(URL_VARIABLE) or DEFAULT_URL
        parts = urlsplit(url)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=PROBE_SECONDS).close()
        except (OSError, ValueError):
            return f"no service at {url} ({URL_VARIABLE} names another); type: sdpo-bench serve-reward NAME"
        return None

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """What the service says of itself: name, version, scale, source, settings, commits, limits.

        Raises:
            MissingError: no service there. UsageError: something else is there.
        """
        answer = self._send("GET", "/info")
        try:
            info = parse_json(answer.content)
            if int(info["protocol"]) != http_format.PROTOCOL:
                raise UsageError(
                    f"the service at {self.url} speaks version {info['protocol']} of the protocol, this sdpo-bench "
                    f"version {http_format.PROTOCOL}. Install the same sdpo-bench on both sides."
                )
            kinds = {"name": str, "version": str, "scale": str, "source": str, "settings": dict, "commits": dict}
            if all(isinstance(info[key], kind) for key, kind in kinds.items()) and int(info["max_bytes"]) > 0:
                return dict(info)
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError):
            pass
        raise UsageError(f"what answers at {self.url} is not a reward service. Start one: sdpo-bench serve-reward NAME")

    def load(self) -> "Remote":
        """Ask the service who it is."""
        self.commits = dict(self.info["commits"])
        return self

    @property
    def filed_as(self) -> str:
        return str(self.info["name"])

    @property
    def full_version(self) -> str:
        return str(self.info["version"])

    @property
    def identity_settings(self) -> dict[str, Any]:
        return dict(self.info["settings"])

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        size = self._batch_size(images)
        chunks = range(0, len(prompts), size)
        scores = []
        for at in chunks:
            part = prompts[at : at + size]
            where = f"images {at + 1} to {at + len(part)} of {len(prompts)}"
            scores.append(self._score(images[at : at + size], part, where))
        return torch.cat(scores)

    def _batch_size(self, images: Tensor) -> int:
        """Images a request, so that it stays below the service's limit (with room for header and prompts)."""
        limit, each = int(self.info["max_bytes"]), images[0].numel() * 4 + 4096
        if each > limit:
            raise UsageError(
                f"one image of {list(images.shape[1:])} is larger than the service at {self.url} takes "
                f"({limit / 2**20:.0f} MiB). Restart it with a larger --max-mib."
            )
        return max(1, min(int(self.settings.batch_size), limit // each))

    def _score(self, images: Tensor, prompts: Sequence[str], where: str) -> Tensor:
        """Scores of one request; ``where`` names it in messages."""
        body = http_format.pack_request(images, prompts)
        answer = self._send("POST", "/score", content=body, headers={"content-type": http_format.MEDIA_TYPE})
        try:
            scores, reward = http_format.unpack_answer(answer.content)
        except UsageError as error:
            raise RunFailed(f"the reward service at {self.url} sent no scores for {where}: {error}") from error
        if scores.shape != (len(prompts),):
            raise RunFailed(
                f"the reward service at {self.url} sent scores of shape {list(scores.shape)} for {where}; expected "
                f"one score for each image, [{len(prompts)}]."
            )
        if (reward.get("name"), reward.get("version")) != (self.filed_as, self.full_version):
            raise RunFailed(
                f"the service at {self.url} now serves {reward.get('name')} version {reward.get('version')}; this run "
                f"began with {self.filed_as} version {self.full_version}. Serve that again, and type the same command."
            )
        return scores

    def _send(self, method: str, path: str, **request: Any) -> Any:
        """The answer to a request, tried again while the service is away or busy.

        Raises:
            MissingError: it stays away. RunFailed: it refuses the request, or its reward failed.
        """
        http = _http()
        if http is None:
            raise MissingError("the reward 'remote' needs the package httpx2. Type: pip install 'sdpo-bench[serve]'")
        problem, patient_until = "", time.monotonic() + self.settings.timeout
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))
            try:
                answer = self._in_turn(patient_until, method, self.url + path, **request)
            except http.ReadTimeout as error:
                raise MissingError(
                    f"the reward service at {self.url} has not answered within {self.settings.timeout:g} s. Raise "
                    "reward.timeout or lower reward.batch_size; the same command then goes on."
                ) from error
            except http.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code == 200:
                return answer
            error_text = _error_text(answer)
            problem = error_text or f"status {answer.status_code}"
            # a service that is being stopped answers 500 too, but not in our form
            if answer.status_code not in BUSY and (error_text or answer.status_code < 500):
                raise RunFailed(f"the reward service at {self.url} answered {answer.status_code}: {problem}")
        raise MissingError(
            f"the reward service at {self.url} cannot be reached ({problem}; {self.settings.retries + 1} attempts). "
            "Start it with 'sdpo-bench serve-reward NAME', or give its address with --set reward.url=URL or the "
            f"variable {URL_VARIABLE}; the same command then goes on."
        )

    def _in_turn(self, patient_until: float, method: str, url: str, **request: Any) -> Any:
        """The answer of a service that has time: one that says when to come again is asked again until then."""
        while True:
            answer = self._ask(method, url, **request)
            pause = _pause(answer)
            if not pause or time.monotonic() + pause > patient_until:
                return answer
            time.sleep(pause)

    def _ask(self, method: str, url: str, **request: Any) -> "Answer":
        """One answer, which ends within the time limit however slowly it comes, and is read no further than a limit.

        Raises:
            RunFailed: too long, or compressed, which nobody asked for and which could be of any size.
        """
        until = time.monotonic() + self.settings.timeout
        with self._client.stream(method, url, **request) as answer:
            if (encoding := answer.headers.get("content-encoding", "identity")) != "identity":
                raise RunFailed(
                    f"what answers at {self.url} sends its answer as {encoding[:40]!a}; it was asked not to."
                )
            content = bytearray()
            for part in answer.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise RunFailed(f"what answers at {self.url} sends more than {MOST_BYTES / 2**20:.0f} MiB.")
                if time.monotonic() > until:
                    raise _http().ReadTimeout("the answer has not ended in time")
            return Answer(answer.status_code, answer.headers, bytes(content))

    @cached_property
    def _client(self) -> Any:
        http = _http()
        local = urlsplit(self.url).hostname in LOOPBACK
        patience = http.Timeout(self.settings.timeout, connect=CONNECT_SECONDS)
        plain = {"accept-encoding": "identity"}
        # A proxy does not know this machine's loopback.
        return http.Client(timeout=patience, headers=plain, trust_env=not local)


def _pause(answer: Any) -> float:
    """Seconds after which a busy service wants to be asked again; 0 where it does not say."""
    seconds = answer.headers.get("retry-after", "") if answer.status_code in (429, 503) else ""
    return min(float(seconds), LONGEST_WAIT) if seconds.isdecimal() else 0.0


def _error_text(answer: Any) -> str:
    """The error text of a service's answer; empty where something else has answered."""
    try:
        return str(parse_json(answer.content)["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return ""


def _http() -> Any:
    try:
        import httpx2
    except ImportError:
        return None
    return httpx2
