"""The command that tests an assumption: ``study``. Registered by ``cli``."""

from typing import Any

import click

from sdpo_bench.cli.options import JSON, MICRO_BATCH, MOST_AT_ONCE, OUT, THREADS, Command, complete


@click.command(cls=Command)
@click.argument("name", metavar="NAME", shell_complete=complete("studies"))
@click.option(
    "--size",
    default="default",
    show_default=True,
    metavar="SIZE",
    help="tiny, small, default, large, or a factor of the default budget.",
)
@OUT
@click.option("--dry-run", is_flag=True, help="Print question, design and cost, do nothing.")
@click.option("--jobs", type=click.IntRange(1, MOST_AT_ONCE), default=1, show_default=True, help="Trainings at a time.")
@click.option("--model", default="", shell_complete=complete("models"), help="Base model [default: the study's own].")
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    shell_complete=complete("rewards"),
    help="Reward; repeatable where the study compares several [default: the study's own].",
)
@click.option(
    "--preset", shell_complete=complete("presets"), help="Preset of the trainings [default: the one that fits]."
)
@click.option("--seeds", default="", metavar="S,S,...", help="Seeds [default: 0,1,2; from large on 0,1,2,3,4].")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any setting of its trainings; repeatable.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps; several by comma.")
@THREADS
@MICRO_BATCH
@JSON
def study(**options: Any) -> None:
    """Test an assumption of the methods: a question, its design, its numbers, and what they say.

    NAME is one of: sdpo-bench list studies. Trainings that are done are not repeated and interrupted ones go on. The
    results are written to RESULTS/studies/NAME, where report finds them. The exit code is 1 when trainings failed;
    they are counted in the tables.

    \b
    Examples:
      sdpo-bench study reward-prediction
      sdpo-bench study normalisation --size small --jobs 2
      sdpo-bench study budget --dry-run
      sdpo-bench study update-order --model sd-turbo --reward hpsv2 --size large
    """
    from sdpo_bench.cli.commands.study import study_command

    study_command(**options)
