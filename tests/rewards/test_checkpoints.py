"""What rewards with a published checkpoint promise besides numbers: where they find it, and what they refuse."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import torch
from reward_fixtures import PATHS, ROOT, TINY_TABLE, damaged_copy, new_reward, prompts

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.models import hub
from sdpo_bench.plugins.registry import find
from sdpo_bench.rewards import _checkpoint

MODEL_REWARDS = sorted(PATHS)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network and an empty hub cache."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.rand(5, 3, 40, 56), [*prompts()[:4], prompts()[0]]


def put_in_cache(cache: Path, file: hub.HubFile, sources: dict[str, Path]) -> None:
    """A snapshot as ``huggingface_hub`` leaves it."""
    repository = cache / f"models--{file.repo.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name, source in sources.items():
        shutil.copy(source, snapshot / name)


def published_files(name: str) -> list[tuple[int, dict[str, Path]]]:
    """For each hub entry of a reward (by place), tiny files under the published names."""
    clip = {file: ROOT / "pickscore" / "model" / file for file in ("config.json", "model.safetensors")}
    table = {file: TINY_TABLE / file for file in ("vocab.json", "merges.txt")}
    blip = ROOT / "imagereward"
    hps = {"HPS_v2_compressed.pt": "HPS_tiny_compressed.pt", "config.json": "config.json"}
    head = {"aesthetic-model.pth": ROOT / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth"}
    aesthetic_clip = {file: ROOT / "aesthetic" / "clip" / file for file in clip}
    return {
        "hpsv2": [(0, {new: ROOT / "hpsv2" / old for new, old in hps.items()}), (1, table)],
        "imagereward": [
            (0, {"ImageReward.pt": blip / "ImageReward_tiny.pt", "config.json": blip / "config.json"}),
            (1, {"med_config.json": blip / "med_config.json"}),
            (2, {"vocab.txt": blip / "bert-base-uncased" / "vocab.txt"}),
        ],
        "pickscore": [(0, clip), (1, table)],
        "aesthetic": [(0, head), (1, aesthetic_clip)],
        "clipscore": [(0, clip | table)],
    }[name]


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_the_hub_cache_is_enough_and_its_commit_is_kept(name, offline, batch):
    plugin = find("rewards", name).load()
    assert "sdpo-bench fetch" in plugin.unavailable()
    for place, sources in published_files(name):
        put_in_cache(offline, plugin.weights[place], sources)
    assert plugin.unavailable() is None
    made = plugin(plugin.Settings())
    local = new_reward(name)
    torch.testing.assert_close(made(*batch), local(*batch), rtol=0, atol=0)
    assert made.commits == {file.repo: COMMIT for file in plugin.weights}
    assert local.commits == {}


@pytest.mark.parametrize("name", [*MODEL_REWARDS, "hpsv2.1"])
def test_without_weights_the_error_says_what_to_type(name):
    made = find("rewards", name).load()()
    with pytest.raises(MissingError, match=rf"sdpo-bench fetch {name}\..*--set reward\.path=PATH"):
        made.load()


def test_an_unknown_revision_is_named(offline):
    plugin = find("rewards", "hpsv2").load()
    put_in_cache(offline, plugin.weights[0], dict(published_files("hpsv2")[0][1]))
    with pytest.raises(MissingError, match="at revision 'no-such-branch' is neither in the hub cache"):
        plugin(plugin.Settings(revision="no-such-branch")).load()


def test_a_set_of_hub_files_counts_only_when_complete(offline):
    file = hub.HubFile("owner/name", None, ("vocab.json", "merges.txt"))
    put_in_cache(offline, file, {"vocab.json": TINY_TABLE / "vocab.json"})
    assert not hub.cached(file)
    put_in_cache(offline, file, {"merges.txt": TINY_TABLE / "merges.txt"})
    assert hub.cached(file)
    assert hub.resolved_commit(hub.find(file)) == COMMIT
    assert hub.resolved_commit(TINY_TABLE) is None


def test_listing_rewards_needs_neither_torch_nor_weights():
    code = (
        "import sys; from sdpo_bench.plugins.registry import plugins; found = plugins('rewards');"
        "print({n: found[n].summary for n in sys.argv[1:]});"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    names = [*MODEL_REWARDS, "hpsv2.1"]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert all(f"'{name}': '" in done.stdout for name in names)
    assert "': ''" not in done.stdout


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_making_a_reward_reads_nothing_and_scoring_reads_once(name, batch, monkeypatch):
    plugin = find("rewards", name).load()
    plugin(plugin.Settings(path="/no/such/file"))
    reads = []
    monkeypatch.setattr(_checkpoint.torch, "load", count(reads, torch.load))
    made = new_reward(name)
    assert reads == []
    made(*batch)
    first = len(reads)
    made(*batch)
    assert len(reads) == first


def count(calls: list, function):
    def counted(*args, **options):
        calls.append(args)
        return function(*args, **options)

    return counted


def drop(state):
    del state[min(state)]


def add(state):
    state["surprise.weight"] = torch.zeros(2)


def reshape(state):
    key = max((k for k in state if state[k].ndim == 1), key=str)
    state[key] = torch.zeros(3)


@pytest.mark.parametrize("name", MODEL_REWARDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [(drop, "missing keys"), (add, "unexpected keys surprise"), (reshape, "wrong shapes")],
)
def test_a_checkpoint_that_does_not_fit_exactly_is_refused(name, change, message, tmp_path):
    folder = damaged_copy(name, tmp_path / "copy", change)
    with pytest.raises(MissingError, match=f"damaged or other checkpoint.*{message}"):
        new_reward(name, path=str(folder)).load()


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_a_truncated_checkpoint_is_refused(name, tmp_path):
    folder = damaged_copy(name, tmp_path / "copy", lambda state: None)
    file = max(folder.iterdir(), key=lambda f: f.stat().st_size if f.is_file() else 0)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(MissingError, match="damaged or other checkpoint"):
        new_reward(name, path=str(folder)).load()


class Bomb:
    """Pickles to code."""

    def __reduce__(self):
        return (os.mkdir, (self.target,))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    bomb, target = Bomb(), tmp_path / "ran"
    bomb.target = str(target)
    file = tmp_path / "HPS_v2_compressed.pt"
    torch.save({"state_dict": bomb}, file)
    with pytest.raises(MissingError, match="damaged or other checkpoint"):
        new_reward("hpsv2", path=str(file)).load()
    assert not target.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, {}, torch.zeros(2)])
def test_a_file_without_named_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "HPS_v2_compressed.pt")
    with pytest.raises(MissingError, match="not a table of named tensors"):
        new_reward("hpsv2", path=str(tmp_path)).load()


@pytest.mark.parametrize("name", MODEL_REWARDS)
def test_a_path_to_nothing_is_named(name, tmp_path):
    with pytest.raises(MissingError, match=r"reward\.path = '/no/such/place'"):
        new_reward(name, path="/no/such/place").load()
    with pytest.raises(MissingError, match=str(tmp_path)):
        new_reward(name, path=str(tmp_path)).load()


def test_a_folder_with_several_checkpoints_is_not_guessed_at(tmp_path):
    for name in ("one.pt", "two.pt"):
        shutil.copy(ROOT / "hpsv2" / "HPS_tiny_compressed.pt", tmp_path / name)
    with pytest.raises(MissingError, match=r"holds no HPS_v2_compressed\.pt"):
        new_reward("hpsv2", path=str(tmp_path)).load()


@pytest.mark.parametrize("name", ["hpsv2", "imagereward"])
def test_head_counts_that_no_tensor_tells_are_asked_for(name, tmp_path):
    folder = damaged_copy(name, tmp_path / "copy", lambda state: None)
    (folder / "config.json").unlink()
    with pytest.raises(MissingError, match=r"no config\.json"):
        new_reward(name, path=str(folder)).load()


def test_hps_2_0_is_never_taken_for_2_1(tmp_path):
    shutil.copy(ROOT / "hpsv2" / "HPS_tiny_compressed.pt", tmp_path / "HPS_v2_compressed.pt")
    plugin = find("rewards", "hpsv2.1").load()
    for path in (tmp_path, tmp_path / "HPS_v2_compressed.pt"):
        with pytest.raises(UsageError, match=r"is HPS v2\.0, and 'hpsv2\.1' is HPS v2\.1"):
            plugin(plugin.Settings(path=str(path))).load()


def test_a_tokenizer_folder_without_its_files_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"tokenizer_path = .* lacks vocab\.json, merges\.txt"):
        new_reward("hpsv2", tokenizer_path=str(tmp_path)).load()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(MissingError, match="does not hold CLIP's tokenizer table"):
        new_reward("hpsv2", tokenizer_path=str(tmp_path)).load()
