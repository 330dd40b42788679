"""Importing this module imports what every cell needs; the server that cells are forked from does so once."""

from importlib import import_module

LIBRARIES = (
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.loaders.peft",
    "transformers.models.clip.modeling_clip",
    "peft",
    "pyarrow.parquet",
    "sdpo_bench.cli.commands.run",
)

for _name in LIBRARIES:
    import_module(_name)
