"""``sdpo-bench serve-reward``: one reward behind HTTP, for runs that cannot or should not load it themselves.

The environment of a scorer with old libraries only has to run this module. Requests are scored one after the other;
bodies are bounded, read as safetensors and never unpickled. There is no password and no encryption, so the service
listens on the loopback address unless told otherwise.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import click
import torch

from sdpo_bench.api import Reward
from sdpo_bench.errors import MissingError, RunFailed, SdpoBenchError, UsageError
from sdpo_bench.models.base_model import pick_device
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.plugins.parse_settings import parse_set
from sdpo_bench.scoring import http_format
from sdpo_bench.scoring.reward_expression import choose

BODIES = 2
"""Requests held in memory at once: one is scored while the next arrives."""
QUEUE = 64
"""Connections at once; uvicorn refuses more with status 503."""
RETRY_AFTER = 1
"""Seconds after which a client of a busy service should ask again."""
MiB = 2**20


def make_app(name: str, reward: Reward, *, max_bytes: int = 256 * MiB, body_timeout: float = 60) -> Any:
    """The ASGI application for a loaded reward.

    ``GET /health``; ``GET /info``: name, version, scale, source, settings, commits, limits; ``POST /score``: see
    ``scoring.http_format``. Errors are ``{"error": text}`` with status 400 (not a valid request), 408 (its body has not
    arrived in time), 413 (too large), 415 (wrong type), 500 (the reward failed) or 503 (busy: ask again).

    Args:
        body_timeout: seconds from a request's beginning in which it must get one of :data:`BODIES` places and its body
            must arrive, so that clients that stall keep no place.
    """
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    about = describe(name, reward, max_bytes)
    worker = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
    places = asyncio.Semaphore(BODIES)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def info(request: Request) -> Response:
        return JSONResponse(about)

    async def score(request: Request) -> Response:
        if request.headers.get("content-type") != http_format.MEDIA_TYPE:
            return JSONResponse({"error": f"the content type must be {http_format.MEDIA_TYPE}."}, 415)
        deadline = asyncio.get_running_loop().time() + body_timeout
        try:
            async with asyncio.timeout_at(deadline):
                await places.acquire()
        except TimeoutError:
            text = "the service is busy: the request has not had its turn in time. Ask again."
            return JSONResponse({"error": text}, 503, {"retry-after": str(RETRY_AFTER), "connection": "close"})
        try:
            async with asyncio.timeout_at(deadline):
                body = await _read(request, max_bytes)
            if body is None:
                return JSONResponse({"error": f"a request may have at most {max_bytes} bytes."}, 413)
            return await scored(body)
        except TimeoutError:
            text = f"the body has not arrived within {body_timeout:g} s. The service's limit: --body-timeout."
            return JSONResponse({"error": text}, 408, {"connection": "close"})
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            places.release()

    async def scored(body: bytes) -> Response:
        try:
            answer = await asyncio.get_running_loop().run_in_executor(worker, answer_to, body, reward, about)
        except Exception as error:  # also out of memory, which plugin_code passes on
            text = str(error) if isinstance(error, SdpoBenchError) else f"{type(error).__name__}: {error}"
            return JSONResponse({"error": text}, 400 if isinstance(error, UsageError) else 500)
        return Response(answer, media_type=http_format.MEDIA_TYPE)

    routes = [Route("/health", health), Route("/info", info), Route("/score", score, methods=["POST"])]
    return Starlette(routes=routes)


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
    if choice.variety:
        raise UsageError(f"'{choice.name}' compares pictures of an evaluation, and a service scores single ones.")
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
            click.echo("warning: no password, no encryption: anyone who reaches this address can use it.", err=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", limit_concurrency=QUEUE))
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
