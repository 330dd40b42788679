"""``examples/geneval-server`` speaks the protocol of the reward ``remote``; a fake stands for the authors' detector."""

import ast
import importlib.util
import json
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from factories import make_resolved
from sdpo_bench.errors import RunFailed
from sdpo_bench.running.run_one import run_job
from sdpo_bench.scoring import http_format
from sdpo_bench.scoring.reward_expression import choose
from sdpo_bench.settings import Runtime

SCRIPT = Path(__file__).parents[2] / "examples" / "geneval-server" / "geneval_server.py"
RECORDS = {
    "a photo of a cat": {
        "tag": "single_object",
        "include": [{"class": "cat", "count": 1}],
        "prompt": "a photo of a cat",
    },
    "two dogs": {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"},
}


def load_script():
    spec = importlib.util.spec_from_file_location("geneval_server", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


geneval_server = load_script()


class Fake:
    """Instead of the detector: a picture is right if its first red value is above a half. Remembers what it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, path, record):
        picture = np.asarray(Image.open(path))
        self.seen.append((picture, record))
        return float(picture[0, 0, 0] > 127)


@contextmanager
def service(evaluator, records=RECORDS, **options):
    server = geneval_server.make_server(evaluator, "1+evaluator-test", records, port=0, **options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def client(url, **settings):
    return choose("remote").make({"url": url, "retries": 0, **settings})


def post(url, body, kind=http_format.MEDIA_TYPE):
    return httpx2.post(f"{url}/score", content=body, headers={"content-type": kind}, trust_env=False)


def test_the_script_is_python_3_8():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))


def test_remote_scores_pictures_with_the_record_of_their_prompts():
    images, fake = torch.zeros(3, 3, 4, 6), Fake()
    images[:, 0, 0, 0] = torch.tensor([1.0, 127.4 / 255, 127.6 / 255])  # bytes 255, 127 and 128
    images[0, 1, 3, 5] = 0.2
    prompts = ["two dogs", "a photo of a cat", "two dogs"]
    with service(fake) as url:
        reward = client(url, batch_size=2).load()
        assert reward(images, prompts).tolist() == [1.0, 0.0, 1.0]
        assert (reward.filed_as, reward.full_version) == ("geneval", "1+evaluator-test")
        assert httpx2.get(f"{url}/health", trust_env=False).json() == {"status": "ok"}
    assert [record for _, record in fake.seen] == [RECORDS[prompt] for prompt in prompts]
    first = fake.seen[0][0]
    assert first.shape == (4, 6, 3)
    assert first[3, 5].tolist() == [0, 51, 0], "0.2 is byte 51 of green, the last row and column"


def test_a_run_trains_and_is_evaluated_with_it(tiny_pipe, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("\n".join(RECORDS) + "\n")
    with service(Fake()) as url:
        settings = {"sample.prompts": str(few), "eval.train": str(few), "eval.steps": "1", "schedule.steps": 2}
        resolved = make_resolved(tiny_pipe, "ddpo", **settings, **{"reward.name": "remote", "reward.url": url})
        outcome = run_job(resolved, Runtime(out=tmp_path / "runs", device="cpu"))
    assert {(row["reward"], row["version"]) for row in outcome.table} == {("geneval", "1+evaluator-test")}


def test_an_unknown_prompt_is_named():
    with service(Fake()) as url, pytest.raises(RunFailed, match="400: GenEval has no record of the prompt 'a hat'"):
        client(url)(torch.rand(1, 3, 4, 4), ["a hat"])


def test_an_error_of_the_evaluator_is_named():
    def failing(path, record):
        raise RuntimeError("CUDA out of memory")

    with service(failing) as url, pytest.raises(RunFailed, match="500: RuntimeError: CUDA out of memory"):
        client(url)(torch.rand(1, 3, 4, 4), ["two dogs"])


def with_one(image, value):
    """A copy of the pictures with one other value."""
    image = image.clone()
    image[1, 2, 3, 3] = value
    return image


def test_wrong_requests_are_refused_and_the_next_one_is_answered():
    from safetensors.torch import save

    image = torch.rand(2, 3, 4, 4)
    good = http_format.pack_request(image, ["two dogs"] * 2)
    wrong = [
        b"",
        b"x" * 100,
        good[:-1],
        (2**40).to_bytes(8, "little") + good[8:],
        save({"images": image}),
        save({"images": image.half()}, {"prompts": '["two dogs", "two dogs"]'}),
        save({"images": image[0]}, {"prompts": '["two dogs"]'}),
        http_format.pack_request(image, ["two dogs"]),
        *(
            http_format.pack_request(with_one(image, value), ["two dogs"] * 2)
            for value in (1.001, -0.001, float("nan"))
        ),
    ]
    with service(Fake(), max_mib=1) as url:
        assert [post(url, body).status_code for body in wrong] == [400] * len(wrong)
        assert post(url, good, "application/json").status_code == 415
        assert post(url, b"x" * (2**20 + 1)).status_code == 413
        assert post(f"{url}/elsewhere", good).status_code == 404
        assert post(url, good).status_code == 200


def test_records_are_read_by_prompt_and_must_agree(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("\n".join(map(json.dumps, RECORDS.values())) + "\n")
    second.write_text(json.dumps(RECORDS["two dogs"]) + "\n")
    assert geneval_server.read_records([first, second]) == RECORDS
    second.write_text(json.dumps(RECORDS["two dogs"] | {"tag": "two_object"}) + "\n")
    with pytest.raises(SystemExit, match=r"b\.jsonl: the prompt 'two dogs' has two different records"):
        geneval_server.read_records([first, second])


AUTHORS = """
import argparse

def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("imagedir")
    parser.add_argument("--model-path", default="./")
    return parser.parse_args()

def load_models(args):
    return "detector of " + args.model_path, ("clip", "transform", "tokenizer"), ["cat", "dog"]

def evaluate_image(path, metadata):
    limits = [THRESHOLD, COUNTING_THRESHOLD, MAX_OBJECTS, NMS_THRESHOLD, POSITION_THRESHOLD]
    models = [object_detector, clip_model, transform, tokenizer, classnames]
    seen.append((path, metadata, models, args.model_path, limits))
    return {"correct": metadata["tag"] == "counting", "reason": ""}

seen = []
"""
"""The names that the authors' evaluation/evaluate_images.py defines and reads, without what they compute."""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in the form of the authors' repository, and one of a detector."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "evaluate_images", raising=False)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "evaluate_images.py").write_text(AUTHORS)
    (tmp_path / "evaluation" / "object_names.txt").write_text("cat\ndog\n")
    (tmp_path / f"{geneval_server.DETECTOR}.pth").write_bytes(b"weights")
    yield tmp_path
    sys.modules.pop("evaluate_images", None)


def test_the_adapter_gives_the_authors_functions_what_their_script_sets(checkout):
    before = list(sys.argv)
    evaluator = geneval_server.GenEval(str(checkout), str(checkout))
    assert [evaluator("a.png", record) for record in RECORDS.values()] == [0.0, 1.0]
    # thresholds: the defaults in the last lines of the authors' script at af4902f
    models = [f"detector of {checkout}", "clip", "transform", "tokenizer", ["cat", "dog"]]
    expected = (RECORDS["two dogs"], models, str(checkout), [0.3, 0.9, 16, 1.0, 0.1])
    assert sys.modules["evaluate_images"].seen[1][1:] == expected
    assert sys.argv == before


def test_another_detector_is_another_version(checkout):
    first = geneval_server.GenEval(str(checkout), str(checkout)).version
    assert geneval_server.GenEval(str(checkout), str(checkout)).version == first
    (checkout / f"{geneval_server.DETECTOR}.pth").write_bytes(b"other weights")
    assert geneval_server.GenEval(str(checkout), str(checkout)).version != first
