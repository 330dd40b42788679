"""The command that runs many jobs: ``sweep``. Registered by ``cli``."""

from typing import Any

import click

from sdpo_bench.cli.options import (
    CHECKPOINT_EVERY,
    JSON,
    MICRO_BATCH,
    MOST,
    MOST_AT_ONCE,
    OUT,
    THREADS,
    Amount,
    Choice,
    Command,
    complete,
)


@click.command(cls=Command)
@click.argument("suite_name", metavar="SUITE", shell_complete=complete("suites"))
@OUT
@click.option(
    "--dry-run", is_flag=True, help="Print the plan with its cost, do nothing; with --force, as if that had been done."
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE[,VALUE]",
    help="Only jobs with this method, reward, model, variant, seed, state or setting; repeatable.",
)
@click.option(
    "--model",
    shell_complete=complete("models"),
    help="Run the suite on this model, with its preset and its own reward, recorded apart [default: the suite's].",
)
@click.option("--only-failed", is_flag=True, help="Only jobs that have failed.")
@click.option(
    "--force",
    is_flag=True,
    help="Restart jobs from the beginning (with --only-failed, failed jobs); old folders move to OUT/replaced.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, MOST_AT_ONCE),
    default=1,
    show_default=True,
    help="Jobs at a time on this machine.",
)
@click.option("--max-hours", type=Amount(0, MOST, min_open=True), help="Save and stop after this time.")
@click.option(
    "--executor",
    type=Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Processes on this machine, or a Ray cluster.",
)
@click.option(
    "--address",
    default="auto",
    show_default=True,
    help="Ray: HOST:PORT, ray://HOST:PORT, auto (the cluster of this machine) or local (start one here).",
)
@click.option(
    "--cpus-per-cell",
    "cpus",
    type=click.IntRange(1, MOST_AT_ONCE),
    default=1,
    show_default=True,
    help="Ray: CPUs of a job.",
)
@click.option(
    "--gpus-per-cell",
    "gpus",
    type=Amount(0, MOST_AT_ONCE),
    default=0.0,
    show_default=True,
    help="Ray: GPUs of a job.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda, cuda:N or mps; several by comma are given to the jobs in turn.",
)
@THREADS
@MICRO_BATCH
@CHECKPOINT_EVERY
@JSON
def sweep(**options: Any) -> None:
    """Run all jobs of a suite: what is done is skipped, what was interrupted goes on, a failure stops nothing else.
    A finished run that lacks scores that the suite asks for is evaluated; it trains again only if its adapter is gone.

    SUITE is a shipped one (sdpo-bench list suites) or a TOML file. Several sweeps may share a results folder. The exit
    code is 1 when jobs failed.

    \b
    Examples:
      sdpo-bench sweep smoke --jobs 2
      sdpo-bench sweep embedded-main --model emoji-flow
      sdpo-bench sweep embedded-main --dry-run
      sdpo-bench sweep embedded-main --jobs 2 --filter method=sdpo,ddpo --max-hours 8
      sdpo-bench sweep my-suite.toml --only-failed
      sdpo-bench sweep paper-main --executor ray --address auto --gpus-per-cell 1
    """
    from sdpo_bench.cli.commands.sweep import SweepOptions, sweep_command

    sweep_command(SweepOptions(**options))
