"""Pipelines that load without an error of their library and are not whole: no run may be trained on them."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from sdpo_bench.errors import MissingError, SdpoBenchError
from sdpo_bench.models.base_model import load_pipeline, load_policy, pipeline_files
from sdpo_bench.settings import ModelSettings


@pytest.fixture
def pipe(tiny_pipe, tmp_path):
    return shutil.copytree(tiny_pipe, tmp_path / "pipe")


def rename(file, change):
    """The same weights under other names; ``None`` leaves one out."""
    tensors = {new: tensor for name, tensor in load_file(file).items() if (new := change(name))}
    save_file(tensors, file, {"format": "pt"})


def edit(file, **changes):
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value != "gone"}))


def weights(pipe, part):
    (file,) = (pipe / part).glob("*.safetensors")
    return file


@pytest.mark.parametrize(
    "change",
    [lambda name: None if "layers.1." in name else name, lambda name: f"module.{name}"],
    ids=["a layer is lacking", "other names"],
)
def test_a_text_encoder_is_not_filled_up_with_random_numbers(pipe, change):
    rename(weights(pipe, "text_encoder"), change)
    with pytest.raises(MissingError, match=r"the weights in '.*text_encoder' lack \d+ of the network's tensors"):
        load_pipeline(ModelSettings(name=str(pipe)))


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_network_without_one_of_its_tensors_is_named(pipe, part):
    file = weights(pipe, part)
    lost = min(name for name in load_file(file) if name.endswith("weight"))
    rename(file, lambda name: None if name == lost else name)
    with pytest.raises(MissingError, match=part):
        load_pipeline(ModelSettings(name=str(pipe)))


@pytest.mark.parametrize("longest", ["gone", None, 10_000])
def test_a_tokenizer_that_cuts_no_prompt_is_refused(pipe, longest):
    edit(pipe / "tokenizer" / "tokenizer_config.json", model_max_length=longest)
    with pytest.raises(MissingError, match="tokenizer"):
        load_pipeline(ModelSettings(name=str(pipe)))


def test_a_scheduler_file_without_content_is_refused(pipe):
    (pipe / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(MissingError, match="does not name its scheduler"):
        pipeline_files(ModelSettings(name=str(pipe)))


def test_a_file_of_no_bytes_is_refused(pipe):
    (pipe / "tokenizer" / "merges.txt").write_text("")
    with pytest.raises(MissingError, match=r"merges.txt' is empty"):
        pipeline_files(ModelSettings(name=str(pipe)))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_base_weights_that_are_no_numbers_are_named(pipe, part):
    file = weights(pipe, part)
    tensors = load_file(file)
    broken = min(name for name in tensors if name.endswith("weight"))
    tensors[broken].view(-1)[-1] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(MissingError, match=rf"{part}' hold NaN or infinity"):
        load_pipeline(ModelSettings(name=str(pipe)))


def test_an_index_of_another_family_is_refused(pipe):
    edit(pipe / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(SdpoBenchError, match=r"without text_encoder_2|cannot be loaded"):
        load_pipeline(ModelSettings(name=str(pipe)))


def test_a_whole_pipeline_makes_a_policy(pipe):
    assert load_policy(ModelSettings(name=str(pipe))).latent_shape
