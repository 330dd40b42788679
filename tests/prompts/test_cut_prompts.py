"""Prompts that the tokenizer cuts, or that are one and the same to the model, are reported once and refuse nothing.

The embedded model has a token a word and reads 8 with start and end, so the first 6 words of a prompt count.
"""

import json
from collections import defaultdict

import pytest
from finished_run import call, words_of

from sdpo_bench.errors import MissingError
from sdpo_bench.models.base_model import load_policy
from sdpo_bench.models.cut_prompts import Reader, Reading, read_by, read_from_files, read_prompts
from sdpo_bench.models.pipeline_loading import load_tokenizers
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import ModelSettings
from sdpo_bench.training import collapse_guards
from tools.random_pipeline import SMALL, SMALL_FLOW, write_pipeline

SIX = "a cat on a blue background"
RED, GREEN = f"{SIX} red car", f"{SIX} green apple"
LONG = "cat " * 40
"""Longer than the 32 tokens of the tiny pipelines."""


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """A pipeline with two tokenizers, of which the second reads 12 tokens and the first 32."""
    folder = write_pipeline(SMALL["sdxl"], tmp_path_factory.mktemp("two") / "sdxl")
    config = folder / "tokenizer_2" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 12}))
    return folder


def read(name, *prompts):
    reading = read_from_files(ModelSettings(name=str(name)), prompts)
    assert reading is not None
    return reading


def test_six_words_are_read_and_the_seventh_is_cut():
    reading = read("emoji-turbo", "a dog", SIX, RED, "a dog", GREEN)
    assert reading == Reading(prompts=4, limit=8, cut=(RED, GREEN), same=((SIX, RED, GREEN),))
    assert reading.warning == (
        "2 of 4 prompts are cut to the 8 tokens that the model reads (start and end tokens included), the first: "
        f"'{RED}'; prompts that are the same to the model: '{SIX}' and '{RED}' and '{GREEN}'"
    )


def test_nothing_is_said_of_prompts_that_are_read_whole():
    assert read("emoji-turbo", "a dog", SIX).warning == ""


def test_other_words_for_the_same_tokens_are_named_without_a_cut():
    """Neither word is known to the embedded model."""
    reading = read("emoji-turbo", "zork", "cat", "Quux")
    assert (reading.cut, reading.same) == ((), (("zork", "Quux"),))
    assert reading.warning == (
        "words that the model does not know: 'zork', 'Quux'; prompts that are the same to the model: 'zork' and 'Quux'"
    )


@pytest.mark.parametrize("model", ["emoji-turbo", "emoji-flow"])
def test_unknown_words_are_named_once_and_known_ones_never(model):
    reading = read(model, "an astronaut riding a cat", "a riding dog")
    assert "riding" in reading.unknown and len(set(reading.unknown)) == len(reading.unknown)
    assert not {"cat", "dog"} & set(reading.unknown)
    shipped = [load_prompts(name) for name in ("simple-animals", "emoji-unseen", "emoji-validation")]
    assert read(model, *(text for texts in shipped for text in texts)).unknown == ()


def test_a_tokenizer_that_spells_every_word_has_no_unknown_ones(sdxl):
    assert read(sdxl, "zork", "an astronaut riding a horse").unknown == ()


@pytest.mark.parametrize("model", ["emoji-turbo", "sdxl"])
def test_prompts_named_as_the_same_are_those_that_the_pipeline_encodes_equally(model, tmp_path):
    folder = str(write_pipeline(SMALL["sdxl"], tmp_path / "sdxl")) if model == "sdxl" else model
    policy = load_policy(ModelSettings(name=folder))
    prompts = ["a dog", "A Dog", SIX, RED, GREEN, LONG + "red", LONG + "green", "zork", "cat", "cat cat"]
    groups = defaultdict(list)
    for prompt in prompts:
        encoded = policy.encode([prompt]).positive
        groups[b"".join(value.numpy().tobytes() for value in encoded.values())].append(prompt)
    expected = tuple(tuple(group) for group in groups.values() if len(group) > 1)
    reading = read_by(policy, prompts)
    assert reading.same == expected and any(LONG + "red" in group for group in expected)


def test_any_of_two_tokenizers_cuts_and_the_smallest_limit_is_named(sdxl):
    """The tiny CLIP tokenizers spell "zzzz" as 4 tokens: 8 words of one letter are 10 tokens, 16 are 18."""
    ten, eighteen, other = " ".join("z" * 8), " ".join("z" * 16), " ".join("z" * 15 + "y")
    reading = read(sdxl, ten, eighteen, other)
    assert (reading.limit, reading.cut) == (12, (eighteen, other))
    assert reading.same == (), "the first tokenizer still tells them apart"
    readers = [Reader(tokenizer, tokenizer.model_max_length) for tokenizer in load_tokenizers(sdxl).values()]
    assert read_prompts(readers[::-1], [ten, eighteen, other]) == reading


def test_a_long_prompt_is_shown_by_its_ends_and_without_control_characters():
    warning = Reading(1, 77, ("\x1b[2J" + "a" * 200 + "END",), ()).warning
    assert "'\\x1b[2Jaaa" in warning and "END'" in warning and " ... " in warning and "\x1b" not in warning
    assert len(warning) < 250


def test_many_groups_are_named_in_part_with_the_command_that_shows_all():
    groups = tuple((f"a{i}", f"b{i}") for i in range(7))
    warning = Reading(14, 77, (), groups).warning
    assert "'a4' and 'b4'; and 2 more groups (sdpo-bench doctor --prompts FILE shows all)" in warning
    assert "a5" not in warning


# -- commands ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "long.txt"
    path.write_text(f"cat\n{LONG}red\n{LONG}green\n")
    return path


@pytest.fixture
def made(tiny_pipe, tmp_path, long_prompts, capsys):
    """A run that is judged on long prompts and trained on short ones: folder, words of the command, standard error."""
    words = words_of(tmp_path, tiny_pipe, "jpeg-compressibility", 4, **{"eval.unseen": long_prompts})
    words += ["--out", tmp_path / "results", "--device", "cpu"]
    code, _, said = call(capsys, *words)
    assert code == 0
    (run,) = (tmp_path / "results" / "runs").glob("sdpo-*")
    return RunFolder(run), words, said


def warned(text):
    return [line for line in text.splitlines() if line.startswith("warning:") and "are cut to the 32 tokens" in line]


def test_a_run_warns_once_and_keeps_the_warning(made, capsys):
    run, words, said = made
    (line,) = warned(said)
    # cat and dog of training, and three of the unseen split, of which cat is one and the same
    assert line.startswith("warning: 2 of 4 prompts are cut to the 32 tokens that the model reads")
    assert "prompts that are the same to the model: 'cat cat" in line and "red' and 'cat cat" in line
    kept, splits = collapse_guards.warnings(run)
    assert splits.guard == "splits" and "1 of 3 prompts of eval.unseen" in splits.text
    assert (kept.epoch, kept.guard, f"warning: {kept.text}") == (0, "prompts", line)
    assert json.loads((run.path / "status").read_text())["warnings"] == 2
    code, shown, said = call(capsys, *words)
    assert code == 0 and not warned(said), "the run has warned before"
    assert f"warning: before training: {kept.text}" in shown
    assert len(collapse_guards.warnings(run)) == 2
    code, shown, _ = call(capsys, "report", "--results", run.path.parent.parent)
    assert code == 0 and "warned before training: 2 of 4 prompts" in " ".join(shown.split())


def test_training_prompts_count_and_a_run_without_long_prompts_has_no_warning(
    tiny_pipe, tmp_path, long_prompts, capsys
):
    words = words_of(tmp_path, tiny_pipe, "jpeg-compressibility", 4)
    code, _, said = call(capsys, *words, "--out", tmp_path / "short")
    assert code == 0 and not warned(said)
    assert not list((tmp_path / "short" / "runs").glob("*/warnings.jsonl"))
    words[words.index(f"sample.prompts={tmp_path / 'two.txt'}")] = f"sample.prompts={long_prompts}"
    code, _, said = call(capsys, *words, "--out", tmp_path / "long")
    assert code == 0 and len(warned(said)) == 1


def test_eval_and_sample_warn_on_standard_error(made, capsys, tmp_path, long_prompts):
    run, *_ = made
    code, shown, said = call(capsys, "eval", run.path, "--steps", "1,2", "--json", "--device", "cpu")
    assert code == 0 and len(warned(said)) == 1 and json.loads(shown)
    out = tmp_path / "x.png"
    words = ["sample", run.path, "--steps", "1", "--device", "cpu", "--out", out]
    code, shown, said = call(capsys, *words, "--prompt", f"{LONG}red", "--prompt", f"{LONG}green")
    assert code == 0 and shown == f"{out}\n"
    assert warned(said)[0].startswith("warning: 2 of 2 prompts are cut")
    code, _, said = call(capsys, *words, "--prompt", "cat")
    assert code == 0 and not warned(said)


def test_a_dry_run_warns_where_the_tokenizer_is_at_hand(tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text(f"a dog\n{RED}\n")
    words = ["run", "--dry-run", "--set", f"sample.prompts={path}", "--set", f"eval.train={path}"]
    code, shown, _ = call(capsys, *words)
    assert code == 0 and "warning: 1 of 2 prompts is cut to the 8 tokens" in shown
    code, shown, _ = call(capsys, *words, "--json")
    found = json.loads(shown)["prompts"]
    assert code == 0 and (found["limit"], found["cut"]) == (8, [RED]) and found["warning"].startswith("1 of 2")


def test_nothing_is_said_where_there_is_no_tokenizer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sdpo_bench.models.base_model.cached_pipeline", lambda *a: None)
    path = tmp_path / "prompts.txt"
    path.write_text(f"{'word ' * 100}\n")
    words = ["run", "--dry-run", "--model", "sd-turbo", "--set", f"sample.prompts={path}"]
    code, shown, said = call(capsys, *words, "--reward", "jpeg-compressibility", "--json")
    assert code == 0 and json.loads(shown)["prompts"] is None and "cut to" not in said
    code, _, said = call(capsys, "doctor", "--prompts", path, "--model", "sd-turbo")
    assert code == 3 and "Type: sdpo-bench fetch sd-turbo" in said


def test_doctor_lists_all_prompts_that_are_cut_or_the_same(tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text(f"a dog\n{RED}\n{GREEN}\n")
    code, shown, _ = call(capsys, "doctor", "--prompts", path)
    assert code in (None, 0) and shown.splitlines() == [
        f"cut: {RED}",
        f"cut: {GREEN}",
        f"the same to the model: {RED} | {GREEN}",
        "emoji-turbo: 2 of 3 prompts are cut to the 8 tokens that the model reads (start and end tokens included)",
    ]
    code, shown, _ = call(capsys, "doctor", "--prompts", path, "--model", "emoji-turbo", "--json")
    found = json.loads(shown)
    assert (found["model"], found["limit"], found["cut"], found["same"]) == (
        "emoji-turbo",
        8,
        [RED, GREEN],
        [[RED, GREEN]],
    )
    code, shown, _ = call(capsys, "doctor", "--prompts", "simple-animals")
    assert code in (None, 0) and shown.startswith("emoji-turbo: 0 of 45 prompts are cut")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "emoji-turbo"], "--model is for --prompts"),
        (["--plugin", "sdpo", "--prompts", "simple-animals"], "different checks"),
        (["--prompts", "simple-animal"], "Did you mean 'simple-animals'"),
        (["--prompts", "simple-animals", "--model", "emoji-turb"], "Did you mean 'emoji-turbo'"),
    ],
)
def test_doctor_refuses_what_does_not_go_together(words, said, capsys):
    code, _, told = call(capsys, "doctor", *words)
    assert code == 2 and said in told


def test_a_damaged_tokenizer_is_refused_in_words(sdxl):
    config = sdxl / "tokenizer_2" / "tokenizer_config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"model_max_length": 10**30}))
    try:
        with pytest.raises(MissingError, match="model_max_length"):
            read(sdxl, "cat")
    finally:
        config.write_text(before)


def test_a_run_s_own_number_of_text_tokens_cuts_its_prompts(tmp_path):
    """Twenty words are more than 16 tokens of T5, and less than the stock pipeline's 256."""
    folder = str(write_pipeline(SMALL_FLOW["sd3"], tmp_path / "sd3"))
    text = " ".join(["cat"] * 20)
    for number, limit, cut in ((None, 256, ()), (16, 16, (text,))):
        model = ModelSettings(name=folder, text_tokens=number, resolution=16)
        for reading in (read_from_files(model, [text]), read_by(load_policy(model), [text])):
            assert (reading.limit, reading.cut) == (limit, cut)
