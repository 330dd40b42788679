"""Commands that read finished runs: ``report``, ``compare``, ``show``, ``watch`` and ``sample``. Registered by ``cli``.

``--results`` is the results folder here (``--out`` in the commands that write into it), because ``--out`` is where a
report or a picture goes.
"""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sdpo_bench.cli.options import DEVICE, JSON, MICRO_BATCH, RESULTS, THREADS, Choice, Command, complete
from sdpo_bench.errors import UsageError
from sdpo_bench.ledger import AXES
from sdpo_bench.settings import MOST_IMAGES

SELECT = click.option(
    "--select",
    multiple=True,
    metavar="KEY=VALUE[,VALUE]",
    help="Only runs with this method, reward, model, seed, state, split or setting; repeatable.",
)
METRIC = click.option(
    "--metric",
    default="mean",
    show_default=True,
    help="Primary endpoint: mean over step counts, few (mean over 1, 2 and 4 steps), area under the step curve, or a "
    "number of steps.",
)
ONLY = (
    "main",
    "against",
    "leaderboard",
    "held-out",
    "pictures",
    "bill",
    "ablation",
    "learning-curve",
    "equal-reward",
    "studies",
)
FORMATS = ("terminal", "markdown", "csv", "latex", "json", "html", "all")


@click.command(cls=Command)
@click.argument("folder", metavar="[FOLDER]", required=False, type=click.Path(path_type=Path))
@RESULTS
@SELECT
@click.option(
    "--group-by",
    multiple=True,
    metavar="SETTING",
    help="One more ablation table: runs that differ in this setting alone, one row a value; repeatable.",
)
@METRIC
@click.option(
    "--axis",
    type=Choice(AXES),
    default="images",
    show_default=True,
    help="Cost of training in which learning curves are timed to a level.",
)
@click.option(
    "--reach",
    type=float,
    metavar="RISE",
    help="That level, as a rise over the base model's mean score; also that of equal-reward [default: half of the best "
    "method's final rise; equal-reward: less if a run never gets there].",
)
@click.option(
    "--reference",
    default="",
    metavar="METHOD[,KEY=VALUE]",
    help="Row that the others are compared with, as in compare, or its label [default: sdpo, or the best on the "
    "trained reward where it is missing].",
)
@click.option(
    "--against",
    multiple=True,
    metavar="paper|PATH",
    help="Show your gains beside others': published numbers, a .toml file of such, or a results folder; repeatable.",
)
@click.option(
    "--only",
    multiple=True,
    type=Choice(ONLY),
    help="Only tables of this kind, without figures and the list of runs; repeatable.",
)
@click.option(
    "--columns",
    metavar="KEY[,KEY]",
    help="Only these columns, by their names in CSV, e.g. letters,mean,gain; tables without any are left out.",
)
@click.option("--format", "style", type=Choice(FORMATS), help="[default: from the name given to --out, else terminal]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write (all: a folder, with figures) [default: standard output; html, all: in the results folder].",
)
def report(folder: Path | None, **options: Any) -> None:
    """Tables, plots and picture grids of all runs, from the results folder alone.

    FOLDER is the results folder, short for --results FOLDER. Needs no GPU, no network and no model. The same results
    give the same bytes.

    \b
    Examples:
      sdpo-bench report
      sdpo-bench report results/reference --format html
      sdpo-bench report --out tables.tex --select reward=hpsv2 --metric 1
      sdpo-bench report --group-by update.lr --select method=sdpo
      sdpo-bench report --only learning-curve --axis denoiser_calls --reach 0.1
      sdpo-bench report --against paper
      sdpo-bench report --only leaderboard --columns letters,mean,gain --format markdown
      sdpo-bench report --format all --out my-report
    """
    from sdpo_bench.cli.commands.report import report_command

    if folder is not None:
        if click.get_current_context().get_parameter_source("results") is ParameterSource.COMMANDLINE:
            raise UsageError(f"two results folders: '{folder}' and --results '{options['results']}'. Leave one out.")
        options["results"] = folder
    report_command(**options)


@click.command(cls=Command)
@click.argument("a", metavar="A", shell_complete=complete("runs"))
@click.argument("b", metavar="B", shell_complete=complete("runs"))
@RESULTS
@SELECT
@METRIC
@JSON
def compare(**options: Any) -> None:
    """Is A better than B? Paired difference, interval, win rate and a verdict in words.

    A and B are methods (all their seeds; one from a file by its class), single runs, or 'base'. A method with several
    choices of settings is narrowed with METHOD,KEY=VALUE. Sides that differ in model, reward, prompts, schedule, budget
    or evaluation sampler are refused, naming what differs.

    \b
    Examples:
      sdpo-bench compare sdpo ddpo
      sdpo-bench compare sdpo base --select reward=hpsv2 --metric 1
      sdpo-bench compare sdpo,method.reward=full sdpo,method.reward=predicted
      sdpo-bench compare sdpo-emoji_align-emoji_turbo-s0-ed3fe7c964 base --json
    """
    from sdpo_bench.cli.commands.report import compare_command

    compare_command(**options)


@click.command(cls=Command)
@click.argument("what", metavar="[RUN|FOLDER]", required=False, shell_complete=complete("runs"))
@click.option("--once", is_flag=True, help="Print the view once, as always where standard output is no terminal.")
@RESULTS
def watch(what: str | None, once: bool, results: Path) -> None:
    """Follow runs while they work: progress, reward by epoch, warnings, time left of the training.

    The view is read from the run folders every 2 s and ends when all runs are done, or none has run for a minute.

    \b
    Examples:
      sdpo-bench watch
      sdpo-bench watch sdpo-emoji_align
      sdpo-bench watch work/results --once
    """
    from sdpo_bench.cli.watch_view import watch_command

    watch_command(what, results, once)


@click.command(cls=Command)
@click.argument("run_name", metavar="RUN", shell_complete=complete("runs"))
@RESULTS
@JSON
def show(run_name: str, results: Path, as_json: bool) -> None:
    """One run: settings that are not defaults, cost, scores, curves and files.

    \b
    Examples:
      sdpo-bench show sdpo-emoji_align-emoji_turbo-s0-ed3fe7c964
      sdpo-bench show RUN --json
    """
    from sdpo_bench.cli.commands.show import show_command

    show_command(run_name, results, as_json)


@click.command(cls=Command)
@click.argument("run_name", metavar="RUN", shell_complete=complete("runs"))
@click.option("--prompt", "prompts", multiple=True, required=True, help="What to draw; repeatable.")
@click.option("--steps", default="1,2,4,8", show_default=True, help="Numbers of denoising steps, one column each.")
@click.option(
    "--images", type=click.IntRange(1, MOST_IMAGES), default=1, show_default=True, help="Images of each prompt."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("sample.png"),
    show_default=True,
    help="PNG file to write.",
)
@RESULTS
@DEVICE
@THREADS
@MICRO_BATCH
def sample(**options: Any) -> None:
    """A labelled grid of pictures: base model beside tuned, same noise, one column a step count.

    \b
    Examples:
      sdpo-bench sample sdpo-emoji_align --prompt "a cat on a blue background"
      sdpo-bench sample RUN --prompt cat --prompt dog --steps 1,4,50 --images 3 --out animals.png
    """
    from sdpo_bench.cli.commands.sample import sample_command

    sample_command(**options)
