"""``sdpo-bench serve-reward``: one reward behind HTTP, for runs that cannot or should not load it themselves.

The environment of a scorer with old libraries only has to run this module. Requests are scored one after the other;
bodies are bounded, read as safetensors and never unpickled. There is no password and no encryption, so the service
listens on the loopback address unless told otherwise.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

import click
import torch

from sdpo_bench.api import Reward
from sdpo_bench.errors import MissingError, RunFailed, UsageError
from sdpo_bench.models.catalogue import pick_device
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.plugins.parse_settings import parse_set
from sdpo_bench.scoring import http_format
from sdpo_bench.scoring.reward_expression import choose

BODIES = 2
"""Requests held in memory at once: one is scored while the next arrives."""
QUEUE = 64
"""Requests that may wait for one of these places; their bodies stay with their senders."""
RETRY_AFTER = 1
"""Seconds after which a client that is refused for want of a place should ask again."""
MiB = 2**20


def make_app(name: str, reward: Reward, *, max_bytes: int = 256 * MiB, body_timeout: float = 60) -> Any:
    """The ASGI application for a loaded reward.

    ``GET /health``; ``GET /info``: name, version, scale, source, settings, commits, limits; ``POST /score``: see
    ``scoring.http_format``. Errors are ``{"error": text}`` with status 400 (not a valid request), 408 (its body has not
    arrived in time), 413 (too large), 415 (wrong type), 500 (the reward failed) or 503 (no place in time, or too many
    wait for one: come again). Time is ``body_timeout`` seconds from a request's beginning, its wait for a place and its
    body's arrival together, so that however many clients stall, all their places are free after that time.
    """
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    about = describe(name, reward, max_bytes)
    worker = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
    room = Room(BODIES, QUEUE)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def info(request: Request) -> Response:
        return JSONResponse(about)

    async def score(request: Request) -> Response:
        if request.headers.get("content-type") != http_format.MEDIA_TYPE:
            return JSONResponse({"error": f"the content type must be {http_format.MEDIA_TYPE}."}, 415)
        deadline = asyncio.get_running_loop().time() + body_timeout
        try:
            async with room.place(deadline):
                async with asyncio.timeout_at(deadline):
                    body = await _read(request, max_bytes)
                if body is None:
                    return JSONResponse({"error": f"a request may have at most {max_bytes} bytes."}, 413)
                return await scored(body)
        except NoPlace as error:
            return JSONResponse({"error": str(error)}, 503, {"retry-after": str(RETRY_AFTER), "connection": "close"})
        except TimeoutError:
            said = f"the body has not arrived within {body_timeout:g} s. The service's limit: --body-timeout."
            return JSONResponse({"error": said}, 408, {"connection": "close"})
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it

    async def scored(body: bytes) -> Response:
        try:
            answer = await asyncio.get_running_loop().run_in_executor(worker, answer_to, body, reward, about)
        except UsageError as error:
            return JSONResponse({"error": str(error)}, 400)
        except RunFailed as error:
            return JSONResponse({"error": str(error)}, 500)
        except Exception as error:
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)
        return Response(answer, media_type=http_format.MEDIA_TYPE)

    routes = [Route("/health", health), Route("/info", info), Route("/score", score, methods=["POST"])]
    return Starlette(routes=routes)


class NoPlace(Exception):
    """The service is busy."""


class Room:
    """Places for requests in memory, given in the order in which they were asked for.

    Args:
        places: requests that are there at once.
        queue: requests that may wait.
    """

    def __init__(self, places: int, queue: int):
        self._free, self._queue, self._waiting = asyncio.Semaphore(places), queue, 0

    @asynccontextmanager
    async def place(self, deadline: float) -> AsyncIterator[None]:
        """A place.

        Args:
            deadline: time of the event loop until which one is waited for.

        Raises:
            NoPlace: none has come free by then, or too many wait already.
        """
        if self._waiting >= self._queue:
            raise NoPlace(f"the service is busy: {self._waiting} requests wait. Ask again.")
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
        except TimeoutError:
            raise NoPlace("the service is busy: the request has not had its turn in time. Ask again.") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


def describe(name: str, reward: Reward, max_bytes: int) -> dict[str, Any]:
    """What ``/info`` answers."""
    return {
        "protocol": http_format.PROTOCOL,
        "name": reward.filed_as or name,
        "version": reward.full_version,
        "scale": reward.scale,
        "source": reward.source,
        "settings": reward.identity_settings,
        "commits": dict(reward.commits),
        "max_bytes": max_bytes,
        "packages": {"sdpo-bench": metadata.version("sdpo-bench"), "torch": torch.__version__},
    }


def answer_to(body: bytes, reward: Reward, about: dict[str, Any]) -> bytes:
    """The body that answers a request's body.

    Raises:
        UsageError: the request is wrong. RunFailed: the reward's answer is.
    """
    images, prompts = http_format.unpack_request(body)
    with plugin_code(f"reward '{about['name']}'"), torch.no_grad():
        scores = reward(images, prompts)
    if not isinstance(scores, torch.Tensor) or scores.shape != (len(prompts),):
        got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise RunFailed(f"the reward returned {got} for {len(prompts)} images")
    return http_format.pack_answer(scores, name=about["name"], version=about["version"])


async def _read(request: Any, max_bytes: int) -> bytes | None:
    """The body, or ``None`` as soon as it is larger than allowed, whatever its length header says."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def serve_command(
    name: str,
    *,
    host: str,
    port: int,
    device: str,
    threads: int,
    max_mib: int,
    body_timeout: float,
    sets: tuple[str, ...],
) -> None:
    """Serve until interrupted.

    Raises:
        UsageError: an unknown reward or setting, a weighted sum, an address that is taken.
        MissingError: starlette, uvicorn or the reward's weights are not here.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise MissingError(
            f"serving needs the package '{error.name}'. Type: pip install 'sdpo-bench[serve]'"
        ) from error
    choice = choose(name)
    if choice.weighted:
        raise UsageError(
            f"'{choice.name}' is a weighted sum, whose parts are standardised by the run that uses it. Serve a part, "
            "and name 'remote' in the run's sum."
        )
    reward = choice.make(_settings(sets), pick_device(device))
    torch.set_num_threads(threads or torch.get_num_threads())
    with _listen(host, port) as listener:
        with plugin_code(f"reward '{choice.name}': load()"):
            reward.load()
        app = make_app(choice.name, reward, max_bytes=max_mib * MiB, body_timeout=body_timeout)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        click.echo(f"serving {choice.name}, version {reward.full_version}, on {url} (Ctrl-C stops)")
        click.echo(f"use it with: sdpo-bench run --reward remote --set reward.url={url}", err=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            click.echo("warning: no password, no encryption: whoever reaches this address can use it.", err=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            click.echo("stopped", err=True)


def _settings(sets: tuple[str, ...]) -> dict[str, Any]:
    given = parse_set(sets)
    other = [key for key in given if not key.startswith("reward.")]
    if other:
        raise UsageError(f"--set {other[0]}: a service has only reward.* settings.")
    return {key.removeprefix("reward."): value for key, value in given.items()}


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port."
        ) from error
