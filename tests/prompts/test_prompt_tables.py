"""Prompts from columns of tables, hub datasets and publications: what is read, what is refused, and their identity."""

import hashlib
import json

import pandas as pd
import pytest
from huggingface_hub import constants

from factories import make_resolved
from sdpo_bench.cli.commands.fetch import fetch_command, items_of
from sdpo_bench.cli.commands.list import show
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.prompts import published_sets
from sdpo_bench.prompts.prompt_sets import load_prompts, prompt_cache, prompt_commits
from sdpo_bench.prompts.published_sets import PUBLISHED, PublishedSet

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TABLE = pd.DataFrame({"prompt": ["a cat", "two\ndogs", "", "a cat", None], "topic": ["x", "y", "x", "y", "z"]})


def write(table, path):
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Add a file to a dataset in an empty hub cache without a network; gives the function."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def add(repo, file, table):
        folder = tmp_path / "hub" / f"datasets--{repo.replace('/', '--')}"
        path = folder / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(COMMIT)
        return write(table, path)

    return add


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_column_is_read_once_a_prompt_without_empty_cells(tmp_path, suffix):
    table = TABLE.astype(object).where(TABLE.notna(), None)
    path = write(table, tmp_path / f"table{suffix}")
    assert load_prompts(str(path)) == load_prompts(f"{path}:prompt") == ["a cat", "two dogs"]
    assert load_prompts(f"{path}:topic") == ["x", "y", "z"]
    with pytest.raises(UsageError, match=r"no column 'caption'. It has: prompt, topic\. Name one: FILE:COLUMN"):
        load_prompts(f"{path}:caption")


def test_a_text_file_is_still_one_prompt_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("prompt\na, b\n")
    assert load_prompts(str(tmp_path / "a.txt")) == ["prompt", "a, b"]


def test_quotes_of_a_tsv_without_quoting_belong_to_the_prompt(tmp_path):
    """As a line of PartiPrompts.tsv (google-research/parti at 5a65797) has them; a TSV of pandas has quoted cells."""
    (tmp_path / "a.tsv").write_text('Prompt\tNote\n"G I G G L E" painted in letters\t\na cat, 7" tall\tx\n')
    assert load_prompts(f"{tmp_path}/a.tsv:Prompt") == ['"G I G G L E" painted in letters', 'a cat, 7" tall']
    quoted = write(pd.DataFrame({"prompt": ['"OPEN" on a door', 'a "cat"']}), tmp_path / "b.tsv")
    assert '"""OPEN"" on a door"' in quoted.read_text()
    assert load_prompts(str(quoted)) == ['"OPEN" on a door', 'a "cat"']


def test_empty_cells_after_the_last_column_are_no_part_of_a_prompt(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,n\n"a red, round apple",1,,\n')
    assert load_prompts(str(tmp_path / "a.csv")) == ["a red, round apple"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"prompt\n", "no prompts in column 'prompt'"),
        ("a.csv", "prompt\ncaf\xe9\n".encode("latin-1"), "not a table in UTF-8"),
        ("a.csv", b"prompt\na cat\na red, round apple\n", "at line 3: it has more cells than the header"),
        ("a.csv", b'prompt,n\n"OPEN" on a door,1\n', "at line 2: ',' expected after '\"'"),
        ("a.csv", b'prompt\n"a cat\na dog\n', "unexpected end of data"),
        ("a.tsv", b"prompt\tn\na cat\t1\tx\n", "at line 2: it has more cells than the header"),
        ("a.jsonl", b"", "no prompts in column 'prompt'"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "not JSON in line 2"),
        ("a.jsonl", b'{"prompt": 7}\n', "has 7 in column 'prompt', row 1"),
        ("a.jsonl", b'["a"]\n', "no JSON object in line 1"),
        ("a.parquet", b"no", "not a Parquet file"),
    ],
)
def test_files_that_hold_no_prompts_are_refused_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as error:
        load_prompts(str(tmp_path / name))
    assert words in str(error.value) and str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_the_content_of_a_table_is_part_of_a_run(tmp_path, tiny_pipe):
    path = write(TABLE, tmp_path / "a.csv")
    first = make_resolved(tiny_pipe, **{"sample.prompts": str(path)})
    assert first.prompt_files.keys() == {"sample.prompts"}
    run_id = first.run_id  # read when it is asked for
    with prompt_cache({str(path): "another"}, "the-run"), pytest.raises(UsageError, match="the file was changed"):
        load_prompts(str(path))
    write(TABLE.assign(prompt="a dog"), path)
    second = make_resolved(tiny_pipe, **{"sample.prompts": str(path)})
    assert run_id != second.run_id


def test_a_cached_dataset_needs_no_network_and_is_known_by_content_and_commit(hub, tiny_pipe):
    hub("someone/sets", "data/train-00000-of-00001.parquet", TABLE)
    assert load_prompts("hub:someone/sets") == ["a cat", "two dogs"]
    assert load_prompts("hub:someone/sets:topic") == load_prompts("hub:someone/sets@main:topic") == ["x", "y", "z"]
    assert prompt_commits(["hub:someone/sets", "emoji-unseen"]) == {"hub:someone/sets": COMMIT}
    before = make_resolved(tiny_pipe, **{"sample.prompts": "hub:someone/sets"}).run_id
    hub("someone/sets", "data/train-00000-of-00001.parquet", TABLE.assign(prompt="a dog"))
    after = make_resolved(tiny_pipe, **{"sample.prompts": "hub:someone/sets"})
    assert before != after.run_id


def test_a_split_that_was_fetched_in_part_is_not_taken_for_the_whole(hub):
    hub("someone/sets", "data/test-00000-of-00002.csv", pd.DataFrame({"prompt": ["b"]}))
    with pytest.raises(MissingError, match="neither in the hub cache nor reachable"):
        load_prompts("hub:someone/sets:prompt:test")
    assert load_prompts("hub:someone/sets:prompt:data/test-00000-of-00002.csv") == ["b"]


def test_a_split_or_file_chooses_among_several(hub):
    hub("someone/sets", "data/train-00000-of-00001.csv", TABLE)
    hub("someone/sets", "data/test-00000-of-00002.csv", pd.DataFrame({"prompt": ["b"]}))
    hub("someone/sets", "data/test-00001-of-00002.csv", pd.DataFrame({"prompt": ["b", "c"]}))
    assert load_prompts("hub:someone/sets:prompt:test") == ["b", "c"]
    assert load_prompts("hub:someone/sets:prompt:data/test-00000-of-00002.csv") == ["b"]
    with pytest.raises(UsageError, match=r"several files: data/test-0.*Name a split or one file"):
        load_prompts("hub:someone/sets")
    with pytest.raises(UsageError, match=r"of 'hub:someone/sets' has no column 'text'. It has: prompt"):
        load_prompts("hub:someone/sets:text:test")


def test_without_network_the_command_to_type_is_named(hub):
    with pytest.raises(MissingError) as error:
        load_prompts("hub:someone/absent:caption:test")
    assert "sdpo-bench fetch hub:someone/absent:caption:test" in str(error.value)
    assert "\n" not in str(error.value)
    for name in PUBLISHED:
        with pytest.raises(MissingError, match="sdpo-bench fetch "):
            load_prompts(name)
        assert not items_of(name)[0].cached


@pytest.mark.parametrize("name", ["hub:", "hub:name", "hub:a/b:", "hub:a/b@", "hub:a/b:c:d:e"])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(UsageError, match=r"hub:OWNER/NAME\[@REVISION\]"):
        load_prompts(name)


def test_a_published_file_is_fetched_once_and_checked(hub, tmp_path, monkeypatch, capsys):
    origin = tmp_path / "origin.tsv"
    origin.write_text("Prompt\tNote\nbond\tx\nbond\ty\nbee\tz\n")
    digest = hashlib.sha256(origin.read_bytes()).hexdigest()
    own = PublishedSet("own", origin.as_uri(), "a paper", "MIT", 2, digest, "Prompt")
    monkeypatch.setitem(PUBLISHED, "own", own)
    fetch_command(("own",), dry_run=False)
    assert f"own: {origin.as_uri()}, licence MIT" in capsys.readouterr().out
    origin.unlink()
    assert load_prompts("own") == ["bond", "bee"]
    own.path.write_text("Prompt\nchanged\n")
    with pytest.raises(MissingError, match="not the published file of 'own'"):
        load_prompts("own")
    own.path.unlink()
    with pytest.raises(MissingError, match="not reachable"):
        own.fetch()


def test_published_sets_are_listed_with_source_and_licence(hub, capsys, tmp_path):
    show("prompts", tmp_path, as_json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"drawbench", "partiprompts", "pickscore-test", "geneval"} <= rows.keys()
    assert rows["partiprompts"]["prompts"] == 1632 and rows["partiprompts"]["licence"] == "Apache-2.0"
    assert "arXiv 2206.10789" in rows["partiprompts"]["first ones"]
    assert rows["drawbench"]["where"] == "sdpo-bench fetch drawbench"
    assert published_sets.PUBLISHED["geneval"].sha256
