"""Whatever answers in the place of a reward service, a run is told in words, in time and without filling the memory."""

import gzip
import time

import httpx2
import pytest
import torch

from sdpo_bench.errors import MissingError, RunFailed, UsageError
from sdpo_bench.rewards import remote
from sdpo_bench.scoring import http_format
from sdpo_bench.scoring.reward_expression import choose

INFO = (
    '{"protocol": 1, "name": "x", "version": "1", "scale": "s", "source": "s", "commits": {}, "max_bytes": 100000, '
    '"settings": {"a": %s}}'
)


def client(handler, **settings):
    """A client of a service that answers as ``handler`` says."""
    made = choose("remote").make({"url": "http://host", "retries": 0, **settings})
    made.__dict__["_client"] = httpx2.Client(transport=httpx2.MockTransport(handler))
    return made


def served(scores, info=INFO % 1):
    """A handler that gives the scores of one request after the other."""
    left = list(scores)

    def answer(request):
        if request.url.path == "/info":
            return httpx2.Response(200, content=info)
        return httpx2.Response(200, content=http_format.pack_answer(left.pop(0), name="x", version="1"))

    return answer


@pytest.mark.parametrize(
    "value",
    ["[" * 20_000 + "]" * 20_000, "9" * 5000, "1e400", "NaN", "-Infinity", "]"],
    ids=["deep", "digits", "overflow", "nan", "infinity", "no-json"],
)
def test_what_a_service_says_of_itself_can_be_used_or_is_refused(value):
    with pytest.raises(UsageError, match="is not a reward service"):
        client(served([], INFO % value)).load()
    failing = client(lambda request: httpx2.Response(500, content=f'{{"error": {value}}}'))
    with pytest.raises(MissingError, match="status 500"):
        failing.load()


@pytest.mark.parametrize("info", ["[]", "7", "null", '{"protocol": []}', '{"protocol": 1, "name": 3}', "\xff"])
def test_something_else_says_something_else_of_itself(info):
    with pytest.raises(UsageError, match="is not a reward service"):
        client(served([], info)).load()


@pytest.mark.parametrize("counts", [(1, 3), (3, 1), (2, 0)])
def test_each_request_gets_its_own_number_of_scores(counts):
    """Also where the numbers of all requests together are right."""
    made = client(served([torch.zeros(count) for count in counts]), batch_size=2)
    where = "images 1 to 2 of 4" if counts[0] != 2 else "images 3 to 4 of 4"
    with pytest.raises(RunFailed, match=rf"{where}; expected one score for each image, \[2\]"):
        made(torch.rand(4, 3, 8, 8), ["a"] * 4)


def test_an_answer_that_holds_no_scores_fails_the_run():
    made = client(lambda request: httpx2.Response(200, content=INFO % 1 if request.url.path == "/info" else b"junk"))
    with pytest.raises(RunFailed, match="sent no scores for images 1 to 1 of 1"):
        made(torch.rand(1, 3, 8, 8), ["a"])


def test_compressed_answers_are_not_unpacked():
    content = gzip.compress(b"0" * 10_000_000)
    made = client(lambda request: httpx2.Response(200, stream=Drops([content]), headers={"content-encoding": "gzip"}))
    with pytest.raises(RunFailed, match="as 'gzip'"):
        made.load()
    assert choose("remote").make({"url": "http://host"})._client.headers["accept-encoding"] == "identity"


class Drops(httpx2.SyncByteStream):
    """An answer that comes in parts, with a pause before each."""

    def __init__(self, parts, pause=0.0):
        self.parts, self.pause, self.sent = parts, pause, 0

    def __iter__(self):
        for part in self.parts:
            time.sleep(self.pause)
            self.sent += len(part)
            yield part


def test_an_answer_without_end_is_read_to_a_limit(monkeypatch):
    monkeypatch.setattr(remote, "MOST_BYTES", 10_000)
    stream = Drops([b"0" * 1000] * 1000)
    with pytest.raises(RunFailed, match="sends more than"):
        client(lambda request: httpx2.Response(200, stream=stream)).load()
    assert stream.sent <= 20_000


def test_an_answer_that_drips_ends_with_the_time_limit():
    stream = Drops([b" "] * 1000, pause=0.05)
    with pytest.raises(MissingError, match=r"not answered within 0\.2 s"):
        client(lambda request: httpx2.Response(200, stream=stream), timeout=0.2).load()
    assert stream.sent < 100


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after", ["1", "9" * 5000, "-1", "soon"])
def test_a_service_that_stays_busy_is_given_up(monkeypatch, status, after):
    now = [0.0]
    monkeypatch.setattr(remote.time, "sleep", lambda pause: now.__setitem__(0, now[0] + pause))
    monkeypatch.setattr(remote.time, "monotonic", lambda: now[0])
    made = client(lambda request: httpx2.Response(status, headers={"retry-after": after}), timeout=30)
    with pytest.raises(MissingError, match=f"status {status}; 1 attempts"):
        made.load()
    assert now[0] <= 30
