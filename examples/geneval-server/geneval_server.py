"""GenEval behind HTTP, as a reward of ``sdpo-bench run --reward remote``.

This file runs in the environment of github.com/djghosh13/geneval (Python 3.9, PyTorch 1), where sdpo-bench cannot
be installed. It needs numpy and Pillow; only the class ``GenEval`` calls the authors' code. The protocol is that of
``sdpo_bench/scoring/http_format.py``: ``GET /health``, ``GET /info``, ``POST /score`` with a safetensors body.

    python geneval_server.py --geneval GENEVAL_FOLDER --detector OBJECT_DETECTOR_FOLDER
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
from PIL import Image

PROTOCOL = 1
MEDIA_TYPE = "application/x-safetensors"
DETECTOR = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
THRESHOLDS = {
    "THRESHOLD": 0.3,
    "COUNTING_THRESHOLD": 0.9,
    "MAX_OBJECTS": 16,
    "NMS_THRESHOLD": 1.0,
    "POSITION_THRESHOLD": 0.1,
}
"""The defaults of the authors' script (evaluation/evaluate_images.py, last lines), which an import does not set."""


class WrongRequest(Exception):
    """A request that cannot be answered; its text goes to the client with status 400."""


class GenEval:
    """The authors' evaluator: 1 where a picture meets all conditions of its prompt, else 0."""

    def __init__(self, geneval, detector):
        """Load the detector and CLIP.

        Args:
            geneval: folder of a checkout of djghosh13/geneval.
            detector: folder with the detector's checkpoint, as evaluation/download_models.sh writes it.
        """
        folder = os.path.join(geneval, "evaluation")
        checkpoint = os.path.join(detector, DETECTOR + ".pth")
        code = [os.path.join(folder, name) for name in ("evaluate_images.py", "object_names.txt")]
        self.version = "1+evaluator-" + digest(code + [checkpoint])
        sys.path.insert(0, folder)
        authors = importlib.import_module("evaluate_images")
        # Their functions read these names from the module, and their script sets them under __main__.
        with arguments(["evaluate_images.py", folder, "--model-path", detector]):
            authors.args = authors.parse_args()
        authors.object_detector, clip, authors.classnames = authors.load_models(authors.args)
        authors.clip_model, authors.transform, authors.tokenizer = clip
        for name, value in THRESHOLDS.items():
            setattr(authors, name, value)
        self.evaluate_image = authors.evaluate_image

    def __call__(self, path, record):
        """Whether the picture in the file ``path`` meets the prompt's ``record``: 1.0 or 0.0."""
        return float(self.evaluate_image(path, record)["correct"])


@contextlib.contextmanager
def arguments(values):
    """``sys.argv`` for the authors' argument parser."""
    before, sys.argv = sys.argv, values
    try:
        yield
    finally:
        sys.argv = before


def digest(paths):
    """First 8 hexadecimal digits of the SHA-256 of files: another detector makes another version of the reward."""
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            for part in iter(lambda: file.read(2**20), b""):
                found.update(part)
    return found.hexdigest()[:8]


def read_records(paths):
    """The record of each prompt, from files in the form of prompts/evaluation_metadata.jsonl.

    Raises:
        SystemExit: a prompt with two different records.
    """
    records = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in filter(str.strip, file):
                record = json.loads(line)
                if records.setdefault(record["prompt"], record) != record:
                    raise SystemExit(f"{path}: the prompt {record['prompt']!r} has two different records.")
    return records


def unpack_request(body):
    """Images ``[B, 3, H, W]`` float32 in [0, 1] and prompts of a request's body.

    Raises:
        WrongRequest: not such a body.
    """
    try:
        start = 8 + int.from_bytes(body[:8], "little")
        header = json.loads(body[8:start].decode("utf-8"))
        about, prompts = header["images"], json.loads(header["__metadata__"]["prompts"])
        first, last = about["data_offsets"]
        images = np.frombuffer(body[start + first : start + last], "<f4").reshape(about["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise WrongRequest(f"not a safetensors body with images and prompts: {error}") from error
    if about["dtype"] != "F32" or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise WrongRequest(f"images must be float32 [B, 3, H, W], got {about['dtype']} {list(images.shape)}.")
    if not isinstance(prompts, list) or len(prompts) != len(images):
        raise WrongRequest(f"expected a JSON list of {len(images)} prompts, one for each image.")
    if not ((images >= 0) & (images <= 1)).all():  # False for NaN too
        raise WrongRequest("images must hold finite values from 0 to 1.")
    return images, prompts


def pack_answer(scores, name, version):
    """Body of an answer: ``scores`` as float32 ``[B]``, with the reward's name and version."""
    data = np.asarray(scores, "<f4").tobytes()
    about = {"dtype": "F32", "shape": [len(scores)], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": {"name": name, "version": version}, "scores": about}).encode("utf-8")
    header += b" " * (-len(header) % 8)  # the data begin at a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + data


def score_pictures(images, prompts, records, evaluator):
    """Scores ``[B]``: each picture is written as a PNG file, which is what the authors' function reads.

    Raises:
        WrongRequest: a prompt without a record.
    """
    for prompt in prompts:
        if prompt not in records:
            raise WrongRequest(f"GenEval has no record of the prompt {prompt!r}; name its file with --metadata.")
    pixels = np.round(images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "00000.png")
        for picture, prompt in zip(pixels, prompts):
            Image.fromarray(picture).save(path)
            scores.append(evaluator(path, records[prompt]))
    return scores


class Handler(BaseHTTPRequestHandler):
    """Answers one request at a time; ``server`` carries evaluator, records and limit."""

    timeout = 60
    """Seconds of silence after which a client is given up."""

    def do_GET(self):
        if self.path == "/health":
            self._answer_json(200, {"status": "ok"})
        elif self.path == "/info":
            self._answer_json(200, self.server.about)
        else:
            self._answer_json(404, {"error": "GET answers /health and /info."})

    def do_POST(self):
        about, size = self.server.about, self.headers.get("content-length", "")
        if self.path != "/score":
            self._answer_json(404, {"error": "POST answers /score."})
        elif self.headers.get("content-type") != MEDIA_TYPE:
            self._answer_json(415, {"error": f"the content type must be {MEDIA_TYPE}."})
        elif not size.isdigit():
            self._answer_json(411, {"error": "a request needs a content-length."})
        elif int(size) > about["max_bytes"]:
            self._answer_json(413, {"error": f"a request may have at most {about['max_bytes']} bytes."})
        else:
            self._score(self.rfile.read(int(size)))

    def _score(self, body):
        about = self.server.about
        try:
            images, prompts = unpack_request(body)
            scores = score_pictures(images, prompts, self.server.records, self.server.evaluator)
        except WrongRequest as error:
            self._answer_json(400, {"error": str(error)})
        except Exception as error:  # of the authors' code: the client names it and the run stops
            traceback.print_exc()  # the client shows the beginning of the text only
            self._answer_json(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            self._answer(200, pack_answer(scores, about["name"], about["version"]), MEDIA_TYPE)

    def _answer_json(self, status, value):
        self._answer(status, json.dumps(value).encode("utf-8"), "application/json")

    def _answer(self, status, body, media_type):
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def make_server(evaluator, version, records, host="127.0.0.1", port=8765, max_mib=256):
    """The server, which listens and does not answer yet.

    Args:
        evaluator: takes the path of a PNG file and the prompt's record, returns the score.
        version: of the reward, part of every result.
        records: the record of each prompt that may be asked.
    """
    server = HTTPServer((host, port), Handler)
    server.evaluator, server.records = evaluator, records
    server.about = {
        "protocol": PROTOCOL,
        "name": "geneval",
        "version": version,
        "scale": "1 where all conditions of the prompt hold, else 0",
        "source": "GenEval, arXiv 2310.11513; github.com/djghosh13/geneval",
        "settings": {},
        "commits": {},
        "max_bytes": max_mib * 2**20,
    }
    return server


def main():
    parser = argparse.ArgumentParser(description="Serve GenEval as a reward of sdpo-bench.")
    parser.add_argument("--geneval", required=True, help="folder of a checkout of djghosh13/geneval")
    parser.add_argument("--detector", required=True, help="folder that evaluation/download_models.sh wrote to")
    parser.add_argument("--metadata", action="append", help="file with a record for each prompt; may be repeated")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--max-mib", type=int, default=256, help="largest request")
    given = parser.parse_args()
    standard = os.path.join(given.geneval, "prompts", "evaluation_metadata.jsonl")
    records = read_records(given.metadata or [standard])
    evaluator = GenEval(given.geneval, given.detector)
    server = make_server(evaluator, evaluator.version, records, given.host, given.port, given.max_mib)
    address = f"http://{given.host}:{server.server_port}"
    print(f"serving geneval, version {evaluator.version}, on {address} (Ctrl-C stops)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
