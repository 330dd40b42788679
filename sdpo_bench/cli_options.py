"""What the commands have in common: options, shell completion and JSON output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sdpo_bench.settings import MOST


class Amount(click.FloatRange):
    """A range of numbers; NaN, which no comparison finds outside of any, is not in it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


OUT = click.option(
    "--results", "--out", "out", type=click.Path(path_type=Path, file_okay=False), default=Path("results"),
    show_default=True, envvar="SDPO_BENCH_OUT", help="Results folder.",
)  # fmt: skip
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
THREADS = click.option(
    "--threads", type=click.IntRange(0, MOST), default=0, help="CPU threads of torch (0: its default)."
)
MICRO_BATCH = click.option(
    "--micro-batch", type=click.IntRange(1, MOST), default=64, show_default=True,
    help="Most latents in one denoiser call; changes memory and speed, no result.",
)  # fmt: skip
REWARD_TIMEOUT = click.option(
    "--reward-timeout", type=Amount(0), default=1800, show_default=True, metavar="SECONDS",
    help="Longest that one reward call may take (0: no limit).",
)  # fmt: skip
JSON = click.option(
    "--json", "as_json", is_flag=True, help="JSON on standard output, everything else on standard error."
)


def complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Shell completion of plugin, model, preset or run names."""

    def names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in _names(kind, context) if name.startswith(incomplete)]

    return names


def _names(kind: str, context: click.Context) -> list[str]:
    if kind in ("methods", "rewards", "studies"):
        from sdpo_bench.registry import plugins

        return list(plugins(kind))
    if kind == "plugins":
        return [*_names("methods", context), *_names("rewards", context)]
    if kind == "models":
        from sdpo_bench.models import KNOWN

        return list(KNOWN)
    if kind == "presets":
        from sdpo_bench.presets import shipped_presets

        return list(shipped_presets())
    if kind == "suites":
        from sdpo_bench.suite import suite_folder

        return [path.stem for path in suite_folder().glob("*.toml")]
    from sdpo_bench.store import run_folders

    return [run.run_id for run in run_folders(Path(context.params.get("out") or "results"))]


def echo_json(data: Any) -> None:
    """JSON on standard output, keys sorted, NaN as null."""
    click.echo(json.dumps(_plain(data), indent=1, sort_keys=True, ensure_ascii=False))


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(item) for item in data]
    if isinstance(data, float) and data != data:
        return None
    return str(data) if isinstance(data, Path) else data
