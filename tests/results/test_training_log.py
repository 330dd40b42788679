"""Training logs as reports read them: two lines of thousands, or all numbers as an array."""

import json

from sdpo_bench.results.training_log import WINDOWS, last_line, log_ends, log_numbers


def written(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_the_ends_of_a_log_skip_what_a_killed_process_left(tmp_path):
    log = written(tmp_path / "train.jsonl", {"epoch": 1}, {"epoch": 2}, '{"epoch": 3, "rew')
    assert log_ends(log) == ({"epoch": 1}, {"epoch": 2})


def test_a_last_line_longer_than_the_first_window_is_found(tmp_path):
    long = {"epoch": 2, "text": "x" * WINDOWS[0]}
    assert last_line(written(tmp_path / "train.jsonl", {"epoch": 1}, long)) == long


def test_a_log_without_lines_has_no_ends(tmp_path):
    assert log_ends(tmp_path / "train.jsonl") == ({}, {})
    assert log_ends(written(tmp_path / "train.jsonl", "[1]\n")) == ({}, {})


def test_points_are_the_lines_that_have_every_number():
    rows = [{"a": 1, "bill": {"images": 64}}, {"a": 2}, {"bill": {"images": 192}, "a": 0.5, "share": [3, 4]}]
    log = log_numbers(rows)
    assert log.points("bill.images", "a").tolist() == [[64, 1], [192, 0.5]]
    assert log.points("a", "b").shape == (0, 2)
    assert log.last["share"] == [3, 4]


def test_a_log_without_lines_has_no_points():
    log = log_numbers([])
    assert log.points("a").shape == (0, 1) and log.last == {}
