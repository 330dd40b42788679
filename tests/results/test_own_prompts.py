"""The prompts that a run's configuration names: known only while their file is as the run read it."""

import json

import pytest

from sdpo_bench.hashing import digest
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.results.read_scores import own_prompts
from sdpo_bench.runs.run_folder import RunFolder


@pytest.mark.parametrize(
    ("content", "known"),
    [("cat\ndog\n", ["cat", "dog"]), ("cat\n", None), (None, None)],
    ids=["same", "edited", "gone"],
)
def test_prompts_of_a_file_are_known_while_it_is_unchanged(tmp_path, content, known):
    path = tmp_path / "mine.txt"
    if content:
        path.write_text(content)
    folder = RunFolder(tmp_path)
    record = {"config": {"eval": {"train": "few-animals", "validation": "", "unseen": str(path)}}}
    assert own_prompts(folder, record) == {"train": load_prompts("few-animals")}  # nothing recorded
    folder.inputs.write_text(json.dumps({"prompts": {str(path): digest(["cat", "dog"])}}))
    assert own_prompts(folder, record).get("unseen") == known


def test_sets_of_the_hub_are_not_read(tmp_path):
    record = {"config": {"eval": {"train": "hub:someone/prompts:text", "unseen": "drawbench"}}}
    assert own_prompts(RunFolder(tmp_path), record) == {}
