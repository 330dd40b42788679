"""Importing this module imports what every job of a sweep needs, so that forked processes have it already."""

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
