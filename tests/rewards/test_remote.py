"""A reward behind HTTP is the same reward: same numbers to the last bit, same name, version, run; and it may die."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pandas as pd
import pytest
import torch

from factories import make_resolved
from sdpo_bench.api import NoSettings, Reward
from sdpo_bench.cli.commands.serve import _listen, make_app, serve_command
from sdpo_bench.errors import MissingError, RunFailed, UsageError
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.evaluation.score_rows import step_table
from sdpo_bench.rewards import remote
from sdpo_bench.rewards.jpeg_incompressibility import JpegIncompressibility
from sdpo_bench.running.live import print_step_table
from sdpo_bench.running.run_one import run_job
from sdpo_bench.scoring import http_format
from sdpo_bench.scoring.make_scorers import make_scorers
from sdpo_bench.scoring.reward_expression import choose
from sdpo_bench.settings import Runtime

JPEG = "jpeg-incompressibility"


@contextmanager
def service(name=JPEG, reward=None, port=0, **options):
    """A service in a thread; yields its address and a function that stops it at once."""
    import uvicorn

    reward = reward or choose(name).make({})
    listener = _listen("127.0.0.1", port)
    config = uvicorn.Config(make_app(name, reward, **options), log_level="error", log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()

    def stop():
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()

    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", stop
    finally:
        stop()


def client(url, **settings):
    return choose("remote").make({"url": url, "retries": 0, **settings})


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


class Exact(Reward):
    """The sum of a picture's bits as the service sees them, so that any rounding on the way shows."""

    version = "7"
    scale = "bits"
    source = "test"

    def __init__(self, act=lambda: None):
        super().__init__(NoSettings())
        self.act = act
        self.sizes = []

    @property
    def full_version(self):
        return "7+exact"

    @property
    def identity_settings(self):
        return {"form": "bits"}

    def __call__(self, images, prompts):
        self.sizes.append(len(images))
        self.act()
        numbers = images.contiguous().view(torch.int32).sum((1, 2, 3)) % 65521
        return numbers.float() / 3 + torch.tensor([float(len(prompt)) for prompt in prompts])


def test_scores_are_equal_to_the_last_bit_whatever_the_batches():
    images, prompts = torch.rand(7, 3, 5, 6), ["", "a", "é", "日本", "\0", '"', "x" * 100]
    images[0, 0, 0, 0] = 1e-42
    direct = Exact()(images, prompts)
    served = Exact()
    with service("exact", served) as (url, _):
        for size in (1, 3, 16):
            assert torch.equal(client(url, batch_size=size)(images, prompts), direct)
        assert served.sizes == [1] * 7 + [3, 3, 1] + [7]
        # images on the way may be of another dtype or not contiguous
        assert torch.equal(
            client(url)(images.permute(0, 1, 3, 2), prompts), Exact()(images.permute(0, 1, 3, 2), prompts)
        )


def test_a_served_reward_has_its_own_name_version_settings_and_scale():
    with service("exact", Exact()) as (url, _):
        made = client(url).load()
        assert (made.filed_as, made.full_version, made.identity_settings) == ("exact", "7+exact", {"form": "bits"})
        assert (made.info["scale"], made.info["source"]) == ("bits", "test")
        assert httpx2.get(f"{url}/health", trust_env=False).json() == {"status": "ok"}


def test_where_a_reward_is_computed_makes_no_other_run(tiny_pipe):
    local = make_resolved(tiny_pipe)
    with service() as (url, _):
        away = make_resolved(tiny_pipe, **{"reward.name": "remote", "reward.url": url, "reward.batch_size": 3})
        assert away.run_id == local.run_id
        assert (away.data, away.versions) == (local.data, local.versions)
        assert away.config.reward.settings["url"] == url
        sums = [
            make_resolved(tiny_pipe, **{"reward.name": f"{name}+jpeg-compressibility", **more})
            for name, more in ((JPEG, {}), ("remote", {"reward.remote.url": url}))
        ]
        assert sums[0].run_id == sums[1].run_id
        doubled = make_resolved(tiny_pipe, **{"reward.name": f"{JPEG}+remote", "reward.remote.url": url})
        with pytest.raises(UsageError, match=f"'{JPEG}' is in the sum twice"):
            doubled.run_id  # noqa: B018
        names = [s.name for s in make_scorers([("remote", {"url": url}), (JPEG, {})], None, "cpu", 2)]
        assert names == [JPEG], "one reward, not two"
    with service(JPEG, Exact()) as (url, _):
        found = make_scorers([("remote", {"url": url}), (JPEG, {})], None, "cpu", 2)
        assert [(s.name, s.reward.full_version) for s in found] == [(JPEG, "7+exact"), (JPEG, "1")]


def test_two_versions_of_a_reward_are_two_blocks_of_a_table(capsys):
    rows = pd.DataFrame(
        [
            {"split": "train", "reward": JPEG, "version": v, "steps": 1, "prompt": p, "image": 0, "score": x}
            for v, p, x in [("1", "a", 1.0), ("1", "b", 2.0), ("2", "a", 100.0)]
        ]
    )
    table = step_table(rows, rows.assign(score=rows.score + 1))
    assert [(row["version"], row["images"], row["base"]) for row in table] == [("1", 2, 1.5), ("2", 1, 100.0)]
    first = SimpleNamespace(name=JPEG, reward=SimpleNamespace(full_version="1"))
    assert ev.of_versions(rows, [first]).score.tolist() == [1.0, 2.0]
    print_step_table(table, JPEG)
    assert f"{JPEG} version 2 (trained on)" in capsys.readouterr().out


def test_requests_stay_below_the_services_limit():
    served = Exact()
    with service("exact", served, max_bytes=40_000) as (url, _):
        client(url)(torch.rand(9, 3, 32, 32), ["a"] * 9)
        assert served.sizes == [2, 2, 2, 2, 1]  # 12,288 bytes and a little an image
        with pytest.raises(UsageError, match=r"one image of \[3, 64, 64\] is larger.*--max-mib"):
            client(url)(torch.rand(1, 3, 64, 64), ["a"])


def post(url, body, kind=http_format.MEDIA_TYPE, timeout=60):
    headers = {"content-type": kind}
    return httpx2.post(f"{url}/score", content=body, headers=headers, trust_env=False, timeout=timeout)


def test_a_service_refuses_what_is_no_request():
    import pickle

    from safetensors.torch import save

    image = torch.rand(2, 3, 4, 4)
    good = http_format.pack_request(image, ["a", "b"])
    wrong = [
        b"",
        b"x" * 100,
        good[:-1],
        (2**40).to_bytes(8, "little") + good[8:],
        pickle.dumps(print),
        save({"images": image}),
        save({"images": image.half()}, {"prompts": '["a", "b"]'}),
        save({"images": image[0]}, {"prompts": '["a", "b"]'}),
        save({"pictures": image}, {"prompts": '["a", "b"]'}),
        http_format.pack_request(image, ["a"]),
        save({"images": image}, {"prompts": '"ab"'}),
        save({"images": image}, {"prompts": "["}),
    ]
    served = Exact()
    with service("exact", served, max_bytes=1000) as (url, _):
        assert post(url, good).status_code == 200
        assert [post(url, body).status_code for body in wrong] == [400] * len(wrong)
        assert post(url, good, "text/plain").status_code == 415
        assert post(url, good + b"x" * 1000).status_code == 413
        assert httpx2.get(f"{url}/score", trust_env=False).status_code == 405
        # a body without a length header is cut off as well
        where = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        where.request(
            "POST", "/score", iter([good, b"x" * 1000]), {"content-type": http_format.MEDIA_TYPE}, encode_chunked=True
        )
        assert where.getresponse().status == 413
    assert served.sizes == [2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.001, 1.001])
def test_what_is_no_picture_is_refused(value):
    images = torch.rand(3, 3, 4, 4)
    images[0, 0, 0, 0], images[0, 0, 0, 1], images[2, 1, 2, 3] = 0, 1, value
    with service("exact", Exact()) as (url, _):
        answer = post(url, http_format.pack_request(images, ["a"] * 3))
    assert answer.status_code == 400
    assert "finite values from 0 to 1" in answer.json()["error"]


def test_deeply_nested_prompts_are_a_wrong_request():
    from safetensors.torch import save

    body = save({"images": torch.rand(1, 3, 4, 4)}, {"prompts": "[" * 100_000 + "]" * 100_000})
    with service("exact", Exact()) as (url, _):
        assert post(url, body).status_code == 400


def half_a_request(url):
    """A connection whose client has announced a body and sent a part of it."""
    place = urlsplit(url)
    where = socket.create_connection((place.hostname, place.port), timeout=10)
    head = f"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: {http_format.MEDIA_TYPE}\r\ncontent-length: 99\r\n\r\n"
    where.sendall(head.encode() + b"x" * 10)
    return where


def test_clients_that_stall_in_their_body_keep_nobody_out():
    good = http_format.pack_request(torch.rand(1, 3, 4, 4), ["a"])
    with service("exact", Exact(), body_timeout=0.5) as (url, _):
        stalled = [half_a_request(url) for _ in range(3)]
        assert post(url, good).status_code == 200
        assert b"408" in stalled[0].recv(1000).splitlines()[0]
        for where in stalled:
            where.close()


def test_however_many_clients_stall_their_places_are_free_after_one_time_limit():
    """Two at a time, the last of them would have been given up after 15 limits."""
    image = torch.rand(1, 3, 4, 4)
    with service("exact", Exact(), body_timeout=4) as (url, _):
        stalled = [half_a_request(url) for _ in range(30)]
        started = time.monotonic()
        assert torch.equal(client(url, retries=4)(image, ["a"]), Exact()(image, ["a"]))
        assert time.monotonic() - started < 30
        assert {where.recv(1000).split()[1] for where in stalled} == {b"408", b"503"}
        for where in stalled:
            where.close()


def test_the_time_is_for_the_way_to_the_reward_and_not_for_the_reward():
    """Two requests that are scored slowly are answered; a third is sent away in time, and not the two for its sake."""
    go, answers = threading.Event(), []
    body = http_format.pack_request(torch.rand(1, 3, 4, 4), ["a"])
    with service("exact", Exact(lambda: go.wait(600)), body_timeout=3) as (url, _):
        threads = [threading.Thread(target=lambda: answers.append(post(url, body, timeout=600))) for _ in range(3)]
        for thread in threads:
            thread.start()
        while not answers and any(thread.is_alive() for thread in threads):
            time.sleep(0.05)
        assert (answers[0].status_code, answers[0].headers["retry-after"]) == (503, "1")
        assert "not had its turn in time" in answers[0].json()["error"]
        go.set()
        for thread in threads:
            thread.join(60)
    assert [answer.status_code for answer in answers] == [503, 200, 200]


def test_a_client_that_goes_away_in_its_body_is_no_error_of_the_service(caplog):
    with service("exact", Exact()) as (url, _):
        half_a_request(url).close()
        assert post(url, http_format.pack_request(torch.rand(1, 3, 4, 4), ["a"])).status_code == 200
        time.sleep(0.2)
    assert "ClientDisconnect" not in caplog.text


def refuse():
    raise ValueError("no such layer")


def test_a_reward_that_fails_there_is_named_here():
    with (
        service("exact", Exact(refuse)) as (url, _),
        pytest.raises(RunFailed, match="500: reward .* ValueError: no such layer"),
    ):
        client(url)(torch.rand(1, 3, 4, 4), ["a"])


def test_a_slow_service_is_named_with_its_settings():
    with (
        service("exact", Exact(lambda: time.sleep(1))) as (url, _),
        pytest.raises(MissingError, match=r"not answered within 0\.2 s.*reward\.timeout.*reward\.batch_size"),
    ):
        client(url, timeout=0.2)(torch.rand(1, 3, 4, 4), ["a"])


@pytest.mark.parametrize("url", ["127.0.0.1:1", "ftp://x", "http://"])
def test_an_address_that_is_none(url):
    with pytest.raises(UsageError, match="not an address"):
        client(url)


def test_something_else_at_the_address():
    with service() as (url, _), pytest.raises(RunFailed, match="404"):
        client(f"{url}/elsewhere").load()


def test_attempts_are_repeated_with_growing_waits(monkeypatch):
    waits = []
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.5)
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    with pytest.raises(MissingError, match=r"7 attempts.*serve-reward"):
        client("http://127.0.0.1:9", retries=6).load()
    assert waits == [0.5, 1, 2, 4, 8, 8]


def test_a_busy_service_is_asked_again(monkeypatch):
    statuses = [503, 408, 200]
    handler = httpx2.MockTransport(lambda request: httpx2.Response(statuses.pop(0), json={"error": "busy"}))
    made = client("http://host", retries=2)
    made.__dict__["_client"] = httpx2.Client(transport=handler)
    assert made._send("GET", "/info").status_code == 200
    statuses[:] = [503, 503, 503]
    with pytest.raises(MissingError, match="busy; 3 attempts"):
        made._send("GET", "/info")


def test_a_service_that_says_when_to_come_again_is_asked_as_long_as_the_timeout_allows(monkeypatch):
    waits, now = [], [0.0]
    monkeypatch.setattr(remote.time, "sleep", lambda pause: (waits.append(pause), now.__setitem__(0, now[0] + pause)))
    monkeypatch.setattr(remote.time, "monotonic", lambda: now[0])
    statuses = [503] * 20 + [200]
    handler = httpx2.MockTransport(lambda request: httpx2.Response(statuses.pop(0), headers={"retry-after": "2"}))
    made = client("http://host", timeout=100)
    made.__dict__["_client"] = httpx2.Client(transport=handler)
    assert made._send("GET", "/info").status_code == 200
    assert waits == [2.0] * 20
    statuses[:] = [503] * 1000
    with pytest.raises(MissingError, match="status 503; 1 attempts"):
        made._send("GET", "/info")
    assert len(statuses) == 1000 - 51


def test_a_service_that_comes_back_as_another_is_refused():
    with service("exact", Exact()) as (url, stop):
        made = client(url)
        made(torch.rand(1, 3, 4, 4), ["a"])
        stop()
        with (
            service(JPEG, port=urlsplit(url).port),
            pytest.raises(RunFailed, match=rf"now serves {JPEG} version 1.*began with exact version 7\+exact"),
        ):
            made(torch.rand(1, 3, 4, 4), ["a"])


def test_a_service_that_dies_in_mid_run_fails_it_with_code_3_and_the_run_resumes(tiny_pipe, tmp_path, monkeypatch):
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    settings = {"sample.prompts": str(few), "eval.train": str(few), "eval.steps": "1", "schedule.steps": 2}
    local = run_job(make_resolved(tiny_pipe, "ddpo", **settings), Runtime(out=tmp_path / "local", device="cpu"))
    served, calls = JpegIncompressibility(NoSettings()), []
    answer = JpegIncompressibility.__call__
    runtime = Runtime(out=tmp_path / "away", device="cpu")
    with service(reward=served) as (url, stop):
        away = settings | {"reward.name": "remote", "reward.url": url, "reward.retries": 1}

        def dying(self, images, prompts):
            calls.append(len(prompts))
            if len(calls) == 2:
                threading.Thread(target=stop).start()
                time.sleep(0.5)
            return answer(self, images, prompts)

        monkeypatch.setattr(JpegIncompressibility, "__call__", dying)
        resolved = make_resolved(tiny_pipe, "ddpo", **away)
        with pytest.raises(MissingError, match="cannot be reached") as caught:
            run_job(resolved, runtime)
        stop()
    monkeypatch.setattr(JpegIncompressibility, "__call__", answer)
    assert caught.value.exit_code == 3
    with service(port=urlsplit(url).port):
        outcome = run_job(make_resolved(tiny_pipe, "ddpo", **away), runtime)
    assert outcome.run.run_id == local.run.run_id
    assert (outcome.run.path / "train.jsonl").read_bytes() == (local.run.path / "train.jsonl").read_bytes()
    assert outcome.table == local.table
    assert outcome.run.record()["reward_execution"]["settings"]["url"] == url


def test_serve_reward_from_the_command_line():
    command = [sys.executable, "-m", "sdpo_bench", "serve-reward", JPEG, "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        line = process.stdout.readline()
        assert line.startswith(f"serving {JPEG}, version 1, on http://127.0.0.1:")
        made = client(line.split(" on ")[1].split()[0], retries=5)
        image = torch.rand(1, 3, 16, 16)
        assert torch.equal(made(image, ["a"]), JpegIncompressibility(NoSettings())(image, ["a"]))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "run --reward remote --set reward.url=" in said
        assert "Traceback" not in said
    finally:
        process.kill()


def serve(name=JPEG, **options):
    usual = {
        "host": "127.0.0.1",
        "port": 0,
        "device": "cpu",
        "threads": 0,
        "max_mib": 1,
        "body_timeout": 60,
        "sets": (),
    }
    serve_command(name, **usual | options)


def test_what_cannot_be_served_is_said(monkeypatch):
    with pytest.raises(UsageError, match="weighted sum"):
        serve("hpsv2+aesthetic")
    with pytest.raises(UsageError, match=r"only reward\.\*"):
        serve(sets=("update.lr=1",))
    with pytest.raises(UsageError, match="no setting 'lr'"):
        serve(sets=("reward.lr=1",))
    with _listen("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="cannot listen on .*--port"):
        serve(port=taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingError, match=r"pip install 'sdpo-bench\[serve\]'"):
        serve()
