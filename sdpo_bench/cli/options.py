"""What the commands have in common: options, shell completion and JSON output."""

import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.seeds import LARGEST
from sdpo_bench.settings import MOST
from sdpo_bench.system.json_toml import json_text, whole_number

MOST_AT_ONCE = 1024
"""Processes, CPU threads or GPUs of one command: more than machines have."""


class Amount(click.FloatRange):
    """A range of numbers without NaN, which no comparison finds outside of any: the limit would never be reached."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class Seed(click.IntRange):
    """One training seed; the error for several names the option that takes them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and re.fullmatch(r"\d+([-,]\d+)+", value):
            self.fail(f"'{value}' is several seeds. Write --seeds {value}.", param, ctx)
        return super().convert(value, param, ctx)


def results_option(*names: str) -> Callable[..., Any]:
    """The option of the results folder under these names."""
    return click.option(
        *names,
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("results"),
        show_default=True,
        envvar="SDPO_BENCH_OUT",
        help="Results folder.",
    )


OUT = results_option("--results", "--out", "out")
RESULTS = results_option("--results")
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
THREADS = click.option(
    "--threads",
    type=click.IntRange(0, MOST_AT_ONCE),
    default=0,
    help="CPU threads of torch (0: one for the embedded models, else torch's default, or a job's share of it).",
)
MICRO_BATCH = click.option(
    "--micro-batch",
    type=click.IntRange(1, MOST),
    default=64,
    show_default=True,
    help="Most latents in one denoiser call; changes memory and speed, no result.",
)
CHECKPOINT_EVERY = click.option(
    "--checkpoint-every",
    type=click.IntRange(1, MOST),
    default=5,
    show_default=True,
    help="Epochs between checkpoints.",
)
REWARD_TIMEOUT = click.option(
    "--reward-timeout",
    type=Amount(0, MOST),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="Longest that one reward call may take (0: no limit).",
)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="JSON on standard output, everything else on standard error."
)

JSON_OUTPUT = "sdpo_bench.json_output"
"""Key of a context's ``meta``: where JSON goes while everything else goes to standard error."""
MAY_BE_EMPTY = ("prompts",)
"""Parameters that an empty text is a value of: an empty prompt draws a picture too."""


class Choice(click.Choice):
    """One of these names; the error has the nearest one first."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in self.choices:
            self.fail(f"unknown '{value}'.{nearest(str(value), self.choices)}", param, ctx)
        return super().convert(value, param, ctx)


class Command(click.Command):
    """A command that refuses empty options and arguments: a shell variable that is not set would choose for itself.

    It refuses a repeated option that takes one value: click would use the last and drop the others.
    For an option that it lacks, it says what other libraries' name for a setting is here.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return self._parse(ctx, args)
        except click.NoSuchOption as error:
            meant = _option_meant(self.name or "", error.option_name)
            if not meant:
                raise
            raise click.UsageError(f"no option '{error.option_name}'. {meant}", ctx) from error

    def _parse(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            typed, _, parameters = self.make_parser(ctx).parse_args(list(args))
            _refuse_repeated(ctx, parameters)
            for parameter in parameters:
                _refuse_empty(ctx, parameter, typed.get(parameter.name or ""))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """With ``--json``, output of libraries and plugins goes to standard error: the JSON stays JSON."""
        if not ctx.params.get("as_json"):
            return super().invoke(ctx)
        ctx.meta[JSON_OUTPUT] = sys.stdout
        with redirect_stdout(sys.stderr):
            return super().invoke(ctx)


def _option_meant(command: str, option: str) -> str:
    from sdpo_bench.plugins.setting_names import RESUMES, option_meant

    meant = option_meant(option, "eval." if command == "eval" else "")
    return meant if command in ("run", "eval") or (meant == RESUMES and command in ("sweep", "study")) else ""


def _refuse_repeated(context: click.Context, parameters: Sequence[click.Parameter]) -> None:
    """``parameters`` has one entry for every time that one was typed."""
    for parameter in parameters:
        if not isinstance(parameter, click.Option) or parameter.multiple or parameter.is_flag:
            continue
        times = parameters.count(parameter)
        if times > 1:
            several = " Several seeds: --seeds 0-4." if parameter.name == "seed" else ""
            names = " / ".join(parameter.opts)
            raise click.UsageError(
                f"{names} is given {times} times and takes one value. Give it once.{several}", context
            )


def _refuse_empty(context: click.Context, parameter: click.Parameter, typed: Any) -> None:
    texts = typed if isinstance(typed, list | tuple) else [typed]
    if parameter.name in MAY_BE_EMPTY or all(not isinstance(text, str) or text.strip() for text in texts):
        return
    option = isinstance(parameter, click.Option)
    what = parameter.opts[0] if option else parameter.make_metavar(context)
    leave = " Leave the option out for its default." if option else ""
    raise click.UsageError(f"{what} is empty (a shell variable that is not set?).{leave}", context)


def parse_seeds(text: str) -> tuple[int, ...]:
    """``"0,2,5"`` or ``"0-4"`` as numbers.

    Raises:
        UsageError: not whole numbers within the limits, one of them twice, or too many.
    """
    seeds: list[int] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        first, dash, last = word.partition("-")
        low = whole_number(first.strip(), 0, LARGEST)
        high = whole_number(last.strip(), 0, LARGEST) if dash else low
        if low is None or high is None or not 0 <= high - low < MOST_AT_ONCE:
            raise UsageError(_SEEDS.format(text))
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(_SEEDS.format(text))
    return tuple(seeds)


_SEEDS = "--seeds: got '{}', expected different whole numbers from 0 to 2**63 - 1, e.g. --seeds 0,2,5 or --seeds 0-4."


def complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Shell completion of plugin, model, preset or run names."""

    def names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in _names(kind, context) if name.startswith(incomplete)]

    return names


def _names(kind: str, context: click.Context) -> list[str]:
    if kind in ("methods", "rewards", "studies"):
        from sdpo_bench.plugins.registry import plugins

        return list(plugins(kind))
    if kind == "plugins":
        return [*_names("methods", context), *_names("rewards", context)]
    if kind == "models":
        from sdpo_bench.models.known_models import KNOWN

        return list(KNOWN)
    if kind == "prompts":
        from sdpo_bench.prompts.prompt_sets import shipped_sets

        return list(shipped_sets())
    if kind == "presets":
        from sdpo_bench.config.presets import shipped_presets

        return list(shipped_presets())
    if kind == "suites":
        from sdpo_bench.sweep.suite import suite_folder

        return [path.stem for path in suite_folder().glob("*.toml")]
    from sdpo_bench.runs.run_folder import run_folders

    return [run.run_id for run in run_folders(Path(context.params.get("out") or "results"))]


def echo_json(data: Any) -> None:
    """JSON on standard output, keys sorted, what is no finite number as null."""
    context = click.get_current_context(silent=True)
    output = context.meta.get(JSON_OUTPUT, sys.stdout) if context else sys.stdout
    click.echo(json_text(_plain(data), sort_keys=True), file=output)


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(item) for item in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return str(data) if isinstance(data, Path) else data
