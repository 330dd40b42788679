"""A judge behind a chat server: what it is asked, how its answer becomes a score, and servers that misbehave."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
import torch
from PIL import Image

from sdpo_bench.errors import MissingError, RunFailed, UsageError
from sdpo_bench.ledger import Ledger
from sdpo_bench.rewards import vlm_judge
from sdpo_bench.scoring.reward_expression import choose
from sdpo_bench.scoring.scorer import Scorer


def completion(text, finish="stop"):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, json.dumps({"choices": [choice]})


@contextmanager
def server(answer):
    """A chat server; ``answer(request, number)`` gives status and body. Yields its address and the requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            requests.append({"path": self.path, "key": self.headers.get("authorization"), **body})
            status, text = answer(body, len(requests))
            content = text.encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/v1", requests
    finally:
        running.shutdown()
        running.server_close()
        thread.join(10)


def judge(url, **settings):
    return choose("vlm-judge").make({"url": url, "model": "judge-7b", "retries": 0, **settings})


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(vlm_judge, "FIRST_WAIT", 0.0)


def picture_of(request):
    content = request["messages"][0]["content"]
    head, data = content[0]["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    return Image.open(BytesIO(base64.b64decode(data))), content[1]["text"]


def red_of_ten(request, _):
    """A judge whose number is the redness of the first pixel, in tenths."""
    picture, _ = picture_of(request)
    return completion(f"It is 512 pixels wide.\nScore: {picture.getpixel((0, 0))[0] / 25.5:.1f}")


def test_each_picture_and_prompt_gets_the_score_of_its_own_answer():
    images = torch.zeros(3, 3, 4, 6)
    images[0, 0], images[1, 0] = 1.0, 0.2  # red 255 and 51: 10 and 2 of 10
    with server(red_of_ten) as (url, requests):
        ledger = Ledger()
        scorer = Scorer("vlm-judge", judge(url, parallel=3), ledger)
        assert scorer(images, ["a {b}", "c", "d"]).tolist() == pytest.approx([1.0, 0.2, 0.0])
        assert scorer(images[:1], ["a {b}"]).tolist() == [1.0]
    assert ledger.rewards == {"vlm-judge": 3}, "the fourth is remembered"
    assert len(requests) == 3
    assert {r["path"] for r in requests} == {"/v1/chat/completions"} and {r["model"] for r in requests} == {"judge-7b"}
    assert {r["temperature"] for r in requests} == {0} and {r["key"] for r in requests} == {None}
    pictures, texts = zip(*map(picture_of, requests))
    assert {p.size for p in pictures} == {(6, 4)}
    assert sorted(text.split("\n")[1] for text in texts) == ["Text: a {b}", "Text: c", "Text: d"]


def test_template_pattern_scale_and_key_are_the_users(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with server(lambda *_: completion('{"rating": 3}')) as (url, requests):
        own = {"template": "Rate <{prompt}>", "pattern": r'"rating":\s*(\d)', "scale": 5.0, "key_variable": "JUDGE_KEY"}
        reward = judge(url, **own)
        assert reward(torch.rand(1, 3, 4, 4), ["x"]).tolist() == pytest.approx([0.6])
        assert picture_of(requests[0])[1] == "Rate <x>" and requests[0]["key"] == "Bearer secret"
        versions = {reward.full_version, judge(url).full_version, judge(url, scale=5.0).full_version}
        assert len(versions) == 3 and "secret" not in str(reward.identity_settings)
        assert judge("http://elsewhere/v1", timeout=1.0).full_version == judge(url).full_version


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status):
    def answer(_, number):
        return (status, "later") if number == 1 else completion("Score: 7")

    with server(answer) as (url, requests):
        assert judge(url, retries=1)(torch.rand(1, 3, 4, 4), ["x"]).tolist() == pytest.approx([0.7])
        assert len(requests) == 2
        requests.clear()
        with pytest.raises(MissingError, match=f"status {status}; 1 attempts"):
            judge(url)(torch.rand(1, 3, 4, 4), ["x"])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (completion("I cannot judge this."), "'I cannot judge this.' has no number"),
        (completion(""), "'' has no number"),
        (completion("Score: 11"), "outside 0 to 10"),
        (completion("Score: 1", "length"), "cut at max_tokens"),
        ((200, "<html><body>Sign in</body></html>"), "no chat completion: '<html>"),
        ((200, ""), "no chat completion: ''"),
        ((200, '{"choices": []}'), "no chat completion"),
    ],
)
def test_an_answer_without_a_score_is_asked_again_and_then_ends_the_run(answer, words):
    with server(lambda *_: answer) as (url, requests):
        with pytest.raises(RunFailed) as error:
            judge(url, retries=1)(torch.rand(1, 3, 4, 4), ["a cat"])
        assert words in str(error.value) and "'a cat'" in str(error.value) and "reward.pattern" in str(error.value)
        assert len(requests) == 2


def test_a_refusal_is_not_repeated():
    with server(lambda *_: (401, '{"error": "bad key"}')) as (url, requests):
        with pytest.raises(RunFailed, match="answered 401: .*bad key"):
            judge(url, retries=3)(torch.rand(1, 3, 4, 4), ["x"])
        assert len(requests) == 1


def test_no_server_and_no_key_are_missing():
    with server(lambda *_: completion("")) as (url, _):
        pass
    with pytest.raises(MissingError, match="cannot be reached"):
        judge(url)(torch.rand(1, 3, 4, 4), ["x"])
    with pytest.raises(MissingError, match="no variable 'NOT_THERE'"):
        judge(url, key_variable="NOT_THERE").load()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ""}, "reward.model=NAME"),
        ({"url": "localhost"}, "not an address"),
        ({"template": "How good is it?"}, "no {prompt}"),
        ({"pattern": "("}, "not a regular expression"),
        ({"pattern": r"\d+"}, "has no group"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings, words):
    with pytest.raises(UsageError) as error:
        judge(**{"url": "http://127.0.0.1:1/v1", **settings})
    assert words in str(error.value)
