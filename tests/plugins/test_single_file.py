"""A method that is a single file: ``--method ./FILE.py:CLASS``."""

import json

import pytest
from finished_run import call, words_of

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.config.run_file import read_run_file, run_file_text
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.plugins.registry import find

SOURCE = '''
from sdpo_bench.api import Loss, Method, Minibatch


class Plain(Method):
    """Policy gradient without clipping."""

    def loss(self, batch: Minibatch) -> Loss:
        return Loss(-(batch.advantages * (batch.log_probs - batch.old_log_probs).exp()).mean())


class Other(Plain):
    """The same by another name."""
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def run_id(method):
    return resolve(Request(method, "emoji-align")).run_id


def test_the_class_is_the_named_one_else_the_last(file):
    assert find("methods", f"{file}:Plain").load().__name__ == "Plain"
    assert find("methods", str(file)).load().__name__ == "Other"
    assert find("methods", f"{file}:Plain").name.startswith("Plain@")


def test_two_classes_of_one_file_are_two_methods(file):
    assert run_id(f"{file}:Plain") != run_id(f"{file}:Other")


def test_an_edited_file_makes_another_run_and_the_same_content_the_same(file, tmp_path):
    first = run_id(f"{file}:Plain")
    file.write_text(SOURCE + "# edited\n")
    assert run_id(f"{file}:Plain") != first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text(SOURCE)
    assert run_id(f"{elsewhere / 'mine.py'}:Plain") == first


def test_it_trains_and_is_scored_and_shown_again(file, tmp_path, tiny_pipe, capsys):
    words = [*words_of(tmp_path, tiny_pipe, "jpeg-incompressibility", 4), "--out", tmp_path / "out"]
    code, out, _ = call(capsys, *words, "--method", f"{file}:Plain")
    assert code == 0
    record = json.loads(next((tmp_path / "out" / "runs").glob("Plain*/run.json")).read_text())
    assert record["config"]["method"]["name"] == find("methods", f"{file}:Plain").name
    assert call(capsys, "eval", "Plain", "--steps", "2", "--out", tmp_path / "out")[0] == 0
    code, again, _ = call(capsys, *words, "--method", f"{file}:Plain")
    assert code == 0 and again.splitlines()[-1] == out.splitlines()[-1]
    assert call(capsys, "compare", record["config"]["method"]["name"], "base", "--results", tmp_path / "out")[0] == 0


def test_a_written_configuration_names_the_file(file, tmp_path):
    resolved = resolve(Request(f"{file}:Plain", "emoji-align"))
    path = tmp_path / "my.toml"
    path.write_text(run_file_text(resolved.config, resolved.method, resolved.run_id, path))
    assert f'name = "{file}:Plain"' in path.read_text()
    assert resolve(Request(file=read_run_file(path))).run_id == resolved.run_id


def test_what_is_no_method_file_is_refused(tmp_path, file):
    with pytest.raises(MissingError, match="No such file"):
        find("methods", "./nowhere.py:Plain")
    with pytest.raises(UsageError, match="has no class 'Plan'"):
        find("methods", f"{file}:Plan")
    (tmp_path / "broken.py").write_text("class (")
    with pytest.raises(UsageError, match="not valid Python"):
        find("methods", str(tmp_path / "broken.py"))
    (tmp_path / "reward.py").write_text("class X(dict):\n    pass\n")
    with pytest.raises(UsageError, match="is not a subclass of sdpo_bench.api.Method"):
        find("methods", str(tmp_path / "reward.py")).load()
    (tmp_path / "score.py").write_text("from sdpo_bench.api import Reward\nclass Score(Reward):\n    pass\n")
    with pytest.raises(
        UsageError, match=r"score.py:Score' is not a subclass.* reward needs a package.* new reward NAME$"
    ):
        find("methods", str(tmp_path / "score.py")).load()
    (tmp_path / "fails.py").write_text(
        "from sdpo_bench.api import Method\nimport nowhere_at_all\nclass X(Method):\n    pass\n"
    )
    with pytest.raises(MissingError, match="needs the package 'nowhere_at_all'"):
        find("methods", str(tmp_path / "fails.py")).load()


def test_a_file_that_this_process_was_not_given_is_asked_for():
    with pytest.raises(UsageError, match=r"'gone@12345678' is a single file.*--method ./FILE.py:CLASS"):
        find("methods", "gone@12345678")


def test_the_default_rate_of_a_new_method_is_said_and_a_chosen_one_is_not(file, capsys):
    words = ["run", "--method", f"{file}:Plain", "--dry-run", "--for-gpu", "8GB"]
    err = call(capsys, *words)[2]
    assert "trains at update.lr = 0.001 of preset 'embedded'" in err and "sdpo-bench sweep search.toml" in err
    assert call(capsys, *words, "--set", "update.lr=1e-3")[2] == ""


@pytest.mark.parametrize(
    ("method", "place", "rate"),
    [
        ("sdpo_sparse", (), None),  # a variant of SDPO, which has a section
        ("sdpo", ("--reward", "hpsv2"), None),  # its published rate
        ("best_of_n", ("--model", "emoji-flow"), None),  # trains nothing
        ("nft", ("--model", "emoji-flow"), "0.003 of preset 'embedded-flow'"),
        ("dpok", ("--reward", "hpsv2"), "5e-05 of preset 'paper-hpsv2'"),
    ],
)
def test_a_built_in_method_without_a_section_in_the_preset_is_named(capsys, method, place, rate):
    err = call(capsys, "run", "--method", method, *place, "--dry-run", "--for-gpu", "8GB")[2]
    if rate is None:
        assert err == ""
    else:
        assert f"note: {method} trains at update.lr = {rate}, a rate that was neither" in err
