"""No text that a file, a name or a variable holds brings down a list or a report of the other runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_factory import base_frame, make_base, make_run, spread

from forked import command, exit_code
from sdpo_bench.errors import UsageError
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.system.console_text import clean
from sdpo_bench.system.json_toml import parse_json

DEEP = "[" * 20_000 + "]" * 20_000
HOSTILE = {
    "deep": DEEP,
    "deep object": '{"a":' * 20_000 + "0" + "}" * 20_000,
    "digits": "9" * 5000,
    "infinity": "Infinity",
    "overflow": "1e400",
    "nan": "NaN",
}
"""JSON values that Python's parser takes or fails on with an error of its own."""


# -- the parser ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("form", ["{}", '{{"a": [{}]}}', "[1, {}]"])
def test_unusable_json_is_a_value_error_in_words(value, form):
    with pytest.raises(ValueError) as caught:
        parse_json(form.format(value))
    assert len(str(caught.value)) < 200 and str(caught.value).isascii()


def test_usable_json_is_as_it_was():
    text = json.dumps({"a": [1, -2.5, 1e308, True, None, "\U0001f600", 2**64], "b": {"": {}}})
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


# -- run folders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three runs of two methods, their base model, a suite and a study folder."""
    out = tmp_path_factory.mktemp("hostile")
    make_base(out, base_frame(spread([0, 0, 0])))
    for method, seed in (("ddpo", 0), ("ddpo", 1), ("sdpo", 0)):
        make_run(out, method, seed, spread([1, 2, 3 + seed]))
    return out


@pytest.fixture
def copy(results, tmp_path):
    return Path(shutil.copytree(results, tmp_path / "results"))


def runs(out: Path) -> list[Path]:
    return sorted(path for path in (out / "runs").iterdir() if not path.name.startswith("base-"))


def told(arguments, tmp_path, expected=(0,)) -> str:
    """What a command prints to standard output; nothing of what it says is a defect."""
    out, err = tmp_path / "told", tmp_path / "error"
    for path in (out, err):
        path.unlink(missing_ok=True)
    code = exit_code(lambda: command([str(a) for a in arguments]), out, err)
    error = err.read_text(errors="replace")
    assert code in expected, error[-3000:]
    assert "unexpected" not in error and "Traceback" not in error, error[-3000:]
    return out.read_text(encoding="utf-8")


def check_lists_and_reports(out, whole, tmp_path):
    """Every form of both names the whole runs, and is UTF-8."""
    rows = {row["run"]: row for row in json.loads(told(["list", "runs", "--out", out, "--json"], tmp_path))}
    told(["list", "runs", "--out", out], tmp_path)
    told(["report", "--results", out, "--format", "all", "--out", tmp_path / "pages"], tmp_path)
    pages = {path.suffix: path.read_text(encoding="utf-8") for path in (tmp_path / "pages").glob("report.*")}
    assert len(pages) == 6 and json.loads(pages[".json"])
    for run in whole:
        assert rows[run.name]["state"] == "done"
        assert run.name in pages[".json"] and run.name in pages[".html"]
    return rows


FILES = ("run.json", "status", "train.jsonl", "timing.jsonl", "validation.jsonl", "search.json", "warnings.jsonl")


def test_hostile_values_harm_no_other_run(copy, tmp_path):
    """One run for each file and each value that fills it."""
    whole = runs(copy)
    for v, (what, value) in enumerate(HOSTILE.items()):
        for f, name in enumerate(FILES):
            (make_run(copy, "sdpo", 100 + 10 * v + f, spread([1, 1, 1])) / name).write_text(f'{{"epoch": {value}}}\n')
        for folder in ("suites", "studies/budget", "references"):
            (copy / folder).mkdir(parents=True, exist_ok=True)
            (copy / folder / f"{what}.json").write_text(f'{{"format": 1, "id": {value}}}')
    rows = check_lists_and_reports(copy, whole, tmp_path)
    states = [row["state"] for row in rows.values()]
    assert states.count("damaged") == 3 * len(HOSTILE), "run.json, suites and studies"
    assert states.count("unknown") == len(HOSTILE), "status"


# -- what is typed -------------------------------------------------------------------------------------------

MANY_DIGITS = ("9" * 5000, "[" * 5000)


@pytest.mark.parametrize("value", MANY_DIGITS, ids=["digits", "deep"])
@pytest.mark.parametrize(
    "words",
    [
        ["run", "--dry-run", "--set", "update.lr={}"],
        ["run", "--dry-run", "--set", "seed={}"],
        ["run", "--dry-run", "--seed", "{}"],
        ["run", "--dry-run", "--budget", "images={}"],
        ["run", "--dry-run", "--set", "eval.steps=1,{}"],
        ["run", "--dry-run", "--set", "eval.steps=[1, {}"],
        ["report", "--metric", "{}"],
        ["report", "--select", "seed={}"],
        ["report", "--group-by", "{}"],
        ["study", "budget", "--dry-run", "--seeds", "{}"],
        ["study", "budget", "--dry-run", "--size", "{}"],
        ["sample", "RUN", "--prompt", "cat", "--steps", "{}"],
        ["eval", "RUN", "--steps", "{}"],
        ["compare", "{}", "base"],
    ],
    ids=lambda words: "-".join(words).replace("{}", "N"),
)
def test_numbers_that_nothing_can_be_are_refused(results, tmp_path, words, value):
    if words[0] != "study":
        words = [*words, "--results" if words[0] in ("report", "sample", "compare") else "--out", str(results)]
    words = [runs(results)[0].name if word == "RUN" else word.format(value) for word in words]
    assert told(words, tmp_path, expected=(2,)) == ""


@pytest.mark.parametrize("value", MANY_DIGITS, ids=["digits", "deep"])
@pytest.mark.parametrize("text", ["[cells]\nmethod = 'sdpo'\nreward = 'emoji-align'\nseed = {}", "[update]\nlr = {}"])
def test_files_of_settings_with_such_numbers_are_refused(tmp_path, text, value):
    path = tmp_path / "mine.toml"
    path.write_text(text.format(value))
    words = (
        ["sweep", path, "--dry-run", "--out", tmp_path] if "cells" in text else ["run", "--dry-run", "--preset", path]
    )
    assert told(words, tmp_path, expected=(2,)) == ""
    assert told(["report", "--against", path], tmp_path, expected=(2,)) == ""


# -- records of another form ---------------------------------------------------------------------------------

COUNTS = {"images": 3, "forward": {"search": 3}, "rewards": {"emoji-align": 3}}
BLOCKS = [
    5,
    [],
    {},
    {"delivered": 3},
    {"delivered": 3, "bill": []},
    {"delivered": "3", "bill": COUNTS},
    {"delivered": 3, "bill": COUNTS | {"images": "3"}},
    {"delivered": 3, "bill": COUNTS | {"images": {}}},
    {"delivered": 3, "bill": COUNTS | {"forward": {"search": []}}},
]


def test_records_of_another_form_harm_no_other_run(copy, tmp_path):
    whole = runs(copy)
    for i, block in enumerate(BLOCKS):
        search = {"samples_per_image": 4, "blocks": {"a": block}}
        folder = make_run(copy, "sdpo", 100 + i, spread([1, 1, 1]))
        (folder / "search.json").write_text(json.dumps(search))
    for i, change in enumerate([{"run": []}, {"run": {}}, {"reward_version": {}}]):
        make_run(copy, "sdpo", 200 + i, spread([1, 1, 1]), record=change)
    make_run(copy, "sdpo", 300, spread([1, 1, 1]), reward="1e+308")
    for i, seconds in enumerate(["1e400", "1e308", "-1e400"]):
        folder = make_run(copy, "sdpo", 400 + i, spread([1, 1, 1]))
        (folder / "timing.jsonl").write_text(f'{{"epoch": 1, "seconds": {seconds}}}\n' * 3)
        assert RunFolder(folder).seconds == 0
    check_lists_and_reports(copy, whole, tmp_path)


def shortened(table):
    """The same with a cell less in its first row."""
    first, *others = table["groups"]
    row, *rows = first["rows"]
    return table | {"groups": [first | {"rows": [row | {"cells": row["cells"][:-1]}, *rows]}, *others]}


def test_a_study_whose_plots_or_tables_are_not_whole_is_damaged(copy, tmp_path):
    (committed,) = (Path(__file__).parents[2] / "results" / "studies" / "reward-kinds").glob("default-*.json")
    whole = json.loads(committed.read_text())
    (copy / "studies" / "reward-kinds").mkdir(parents=True)
    for name, change in {"none": {"charts": []}, "whole": {}}.items():
        plots = [plot | change for plot in whole["findings"]["plots"]]
        data = whole | {"findings": whole["findings"] | {"plots": plots}}
        (copy / "studies" / "reward-kinds" / f"{name}.json").write_text(json.dumps(data))
    tables = [shortened(table) for table in whole["findings"]["tables"]]
    data = whole | {"findings": whole["findings"] | {"tables": tables}}
    (copy / "studies" / "reward-kinds" / "short.json").write_text(json.dumps(data))
    rows = check_lists_and_reports(copy, runs(copy), tmp_path)
    said = {name: row["message"] for name, row in rows.items() if name.startswith("studies/")}
    assert said.keys() == {"studies/reward-kinds/none.json", "studies/reward-kinds/short.json"}
    assert "lack points" in said["studies/reward-kinds/none.json"]
    assert "lack cells" in said["studies/reward-kinds/short.json"]


# -- names, messages and outputs -----------------------------------------------------------------------------

CONTROLS = "a\x1b[2J\x9b1m\u202eback\u2066\x00\x07z"
RAW = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def test_names_that_are_no_text_are_shown_as_escapes(copy, tmp_path):
    whole = runs(copy)
    shutil.copytree(whole[0], copy / "runs" / "sdpo-\udcff")  # the byte 0xff, as Python has it
    (copy / "studies" / "\udcfc" / "runs").mkdir(parents=True)
    for path in (copy / "suites" / "\udcfe.json", copy / "studies" / "\udcfd" / "x.json"):
        path.parent.mkdir()
        path.write_text("{}")
    rows = check_lists_and_reports(copy, whole, tmp_path)
    assert "rename" in rows["sdpo-\udcff"]["message"]
    for suffix in (".txt", ".md", ".html", ".json"):  # those with notices
        page = (tmp_path / "pages" / "report").with_suffix(suffix).read_text(encoding="utf-8")
        assert "udcff" in page and "udcfe" in page
    for form in ("terminal", "json"):
        assert "udcff" in told(["report", "--results", copy, "--format", form], tmp_path)
    told(["doctor", "--out", copy], tmp_path, expected=(0, 3))


def test_control_characters_of_a_message_are_shown_as_escapes(copy, tmp_path):
    make_run(copy, "sdpo", 50, spread([1, 1, 1]), state="failed", message=CONTROLS)
    check_lists_and_reports(copy, runs(copy)[:3], tmp_path)
    for path in (tmp_path / "pages").glob("report.*"):
        page = path.read_text(encoding="utf-8")
        assert not re.findall(RAW, page), path
        assert "back" in page and (r"x1b[2J" in page or path.suffix in (".tex", ".md", ".csv", ".json")), path
    for words in (["list", "runs", "--out", copy], ["list", "runs", "--out", copy, "--json"]):
        assert not re.findall(RAW, told(words, tmp_path))
    assert json.loads((tmp_path / "pages" / "report.json").read_text())


def test_escapes_keep_what_may_be_shown():
    assert clean("a\tb\nc\u2028d\u00a0e") == "a b c d e"
    assert clean("\U0001f469\u200d\U0001f680 \u4e2d e\u0301") == "\U0001f469\u200d\U0001f680 \u4e2d e\u0301"
    assert clean("\x1b\x85\u202e\udcff") == r"\x1b \u202e\udcff"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("words", [["report"], ["run", "--dry-run", "--json"]], ids=" ".join)
def test_a_locale_of_ascii_hinders_nothing(copy, tmp_path, words):
    make_run(copy, "sdpo", 50, spread([1, 1, 1]), state="failed", message="na\u00efve \u4e2d \U0001f600")
    place = ["--results" if words[0] == "report" else "--out", str(copy)]
    done = subprocess.run(
        [sys.executable, "-m", "sdpo_bench", *words, *place], env=os.environ | ASCII, capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    if "json" in " ".join(words):
        assert json.loads(done.stdout.decode())


@pytest.mark.parametrize("words", [[], ["--format", "json"], ["--format", "all"]], ids=" ".join)
def test_a_report_is_not_written_to_a_file_named_like_an_option(results, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert told(["report", "--results", results, "--out", "-", *words], tmp_path, expected=(2,)) == ""
    assert "standard output" in (tmp_path / "error").read_text() and not (tmp_path / "-").exists()


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("latin-1", "WINDOWS-1252"), ("utf-16-le", "line 1, 2")],
)
def test_prompts_of_another_encoding_are_refused_with_the_way_to_convert_them(tmp_path, encoding, named):
    path = tmp_path / "my prompts.txt"
    path.write_bytes(("na\u00efve\ncat\n" if encoding != "utf-16-le" else "dog\ncat").encode(encoding))
    with pytest.raises(UsageError, match=rf"{named}.*iconv -f .* -t UTF-8 '.*my prompts.txt' > NEW.txt"):
        load_prompts(str(path))


def test_a_prompt_ends_where_its_line_does(tmp_path):
    """Pasted texts hold line and page separators that no editor shows as a new line."""
    path = tmp_path / "prompts.txt"
    pasted = [f"a fox{separator}on a mat" for separator in "\u2028\u2029\x85\x0b\x0c\x1c"]
    path.write_text("\r\n".join([*pasted, "cat"]), encoding="utf-8", newline="")
    assert load_prompts(str(path)) == [*pasted, "cat"]


def test_a_nul_in_a_prompt_is_refused_with_its_line(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"cat\ndog\0\n")
    with pytest.raises(UsageError, match="NUL character in line 2,"):
        load_prompts(str(tmp_path / "prompts.txt"))
