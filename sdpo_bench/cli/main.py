"""The ``sdpo-bench`` command: thin, with late imports, so that help and lists never wait for torch."""

import gc
from pathlib import Path
from typing import Any, get_args

import click

from sdpo_bench import __version__
from sdpo_bench.cli import report_commands, study_commands, sweep_commands
from sdpo_bench.cli.options import (
    CHECKPOINT_EVERY,
    DEVICE,
    JSON,
    MICRO_BATCH,
    MOST,
    OUT,
    REWARD_TIMEOUT,
    THREADS,
    Amount,
    Choice,
    Command,
    Seed,
    complete,
)
from sdpo_bench.errors import nearest
from sdpo_bench.plugins.setting_names import RESUME, RESUMES
from sdpo_bench.settings import MOST_IMAGES, TrackerName
from sdpo_bench.system.distributed import refuse_several
from sdpo_bench.system.library_imports import collector_paused

LISTS = ("methods", "rewards", "models", "presets", "suites", "studies", "prompts", "settings", "runs")


class Group(click.Group):
    """A command group that suggests the nearest command."""

    command_class = Command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            if name in RESUME:
                ctx.fail(f"no command '{name}'. {RESUMES}")
            ctx.fail(f"no command '{name}'.{nearest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sdpo-bench")
@click.option("--debug", is_flag=True, help="Show tracebacks instead of short messages.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Benchmark harness for RL alignment of few-step diffusion models.

    \b
    sdpo-bench run                                   train and evaluate the embedded model on a CPU
    sdpo-bench run --method ddpo --seed 1            another method, another seed
    sdpo-bench run --method sdpo --reward hpsv2      SD-Turbo, as published (needs a GPU and its weights)
    sdpo-bench sweep embedded-main --dry-run         a whole table: its jobs and what they cost
    sdpo-bench study reward-prediction               is an assumption of the methods true?
    sdpo-bench list methods                          what there is
    """
    context.obj = {"debug": debug}
    if context.invoked_subcommand != "run":
        refuse_several(context.invoked_subcommand or "")


# -- run -----------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--method", shell_complete=complete("methods"), help="Method plugin, or ./FILE.py:CLASS [default: sdpo].")
@click.option(
    "--reward",
    shell_complete=complete("rewards"),
    help='Reward plugin, or a weighted sum such as "hpsv2*0.5+aesthetic*0.5" [default: the model\'s own].',
)
@click.option(
    "--model",
    shell_complete=complete("models"),
    help="Known model, pipeline folder or hub id [default: the reward's own].",
)
@click.option(
    "--preset", shell_complete=complete("presets"), help="Preset name or TOML file [default: the one that fits]."
)
@click.option("--seed", type=Seed(0), help="Training seed, at most 2**63 - 1 [default: 0].")
@click.option("--seeds", help="Several training seeds, one run after the other, e.g. 0-4 or 0,2,5.")
@click.option("--budget", help="Where training stops: AXIS=AMOUNT, e.g. images=3000 or reward_calls=5k.")
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any setting (sdpo-bench list settings); repeatable."
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Settings from a .toml or .yaml file, or the run.json of a run to repeat; options and --set go before it.",
)
@click.option(
    "--write-config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write all settings to a .toml or .yaml file for --config.",
)
@click.option(
    "--track",
    multiple=True,
    type=Choice(get_args(TrackerName)),
    help="Also send curves, scores and pictures to this tracker; repeatable. Settings: track.*",
)
@click.option("--dry-run", is_flag=True, help="Print settings, cost, time, memory and missing weights, do nothing.")
@click.option("--for-gpu", metavar="MEMORY", help="With --dry-run: plan for a GPU that is not here, e.g. 40GB.")
@OUT
@DEVICE
@THREADS
@MICRO_BATCH
@REWARD_TIMEOUT
@CHECKPOINT_EVERY
@click.option(
    "--async-rewards",
    is_flag=True,
    help="Score one batch while the next is decoded (same numbers, unless with tf32).",
)
@click.option(
    "--processes",
    type=click.IntRange(0, 2),
    default=0,
    show_default=True,
    help="2: a second process evaluates while the run trains (same numbers); 1: none; 0: where a core is idle.",
)
@JSON
def run(**options: Any) -> None:
    """Train one method with one reward, then evaluate it at every step count.

    A run that is already done is shown again; an interrupted one goes on where it stopped.

    \b
    Examples:
      sdpo-bench run
      sdpo-bench run --method ddpo --budget images=3000 --seed 1
      sdpo-bench run --set update.lr=2e-3 --set eval.steps=1,4
      sdpo-bench run --reward "emoji-align+emoji-style*0.5" --set "reward.emoji-style.style=noto"
      sdpo-bench run --reward jpeg-compressibility --dry-run
      sdpo-bench run --method ddpo --dry-run --write-config my.toml
      sdpo-bench run --config my.toml --seed 1
      sdpo-bench run --method ddpo --seeds 0-4
      sdpo-bench run --track tensorboard --set track.project=my-project
      sdpo-bench run --reward hpsv2 --dry-run --for-gpu 40GB
    """
    gc.freeze()  # this process loads one model and ends: what its imports leave is never garbage
    with collector_paused():
        from sdpo_bench.cli.commands.run import run_command

    run_command(**options)


# -- eval, export --------------------------------------------------------------------------------------------


@cli.command("eval")
@click.argument("runs", nargs=-1, required=True, shell_complete=complete("runs"))
@click.option("--steps", help="Step counts, e.g. 1,2,4,8 [default: the run's own].")
@click.option("--rewards", help="Rewards, comma-separated, also ones not trained on [default: the run's own].")
@click.option("--images", type=click.IntRange(1, MOST_IMAGES), help="Images per prompt [default: the run's own].")
@click.option("--unseen", help="Prompt set of the unseen split, e.g. emoji-unseen.")
@click.option("--validation", help="Prompt set of the validation split.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Other eval.* settings; repeatable.")
@OUT
@DEVICE
@THREADS
@MICRO_BATCH
@REWARD_TIMEOUT
@JSON
def evaluate(**options: Any) -> None:
    """Score checkpoints and their base model over step counts, prompts and rewards.

    Scores are added to the run's eval.parquet; what is already there is not computed again.

    \b
    Examples:
      sdpo-bench eval sdpo-emoji_align
      sdpo-bench eval RUN --steps 1,3,100 --rewards emoji-style,jpeg-compressibility
      sdpo-bench eval RUN --unseen emoji-unseen
    """
    from sdpo_bench.cli.commands.eval import eval_command

    eval_command(**options)


@cli.command()
@click.argument("run_name", metavar="RUN", shell_complete=complete("runs"))
@click.option(
    "--to", "target", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to."
)
@click.option("--force", is_flag=True, help="Overwrite what is already there.")
@click.option(
    "--format",
    "form",
    type=Choice(["diffusers", "kohya"]),
    default="diffusers",
    show_default=True,
    help="Names in the file; kohya: for ComfyUI and AUTOMATIC1111, UNet models only.",
)
@click.option("--merge", is_flag=True, help="Write the whole pipeline, with the adapter merged into the denoiser.")
@click.option(
    "--push-to-hub", "repo", default="", metavar="OWNER/NAME", help="Add a model card, and show what would be uploaded."
)
@click.option("--yes", is_flag=True, help="Upload it, with --push-to-hub.")
@OUT
def export(run_name: str, target: Path, **options: Any) -> None:
    """Write a run's LoRA so that stock diffusers loads it with load_lora_weights.

    \b
    Examples:
      sdpo-bench export sdpo-emoji_align --to my-lora
      sdpo-bench export sdpo-emoji_align --to for-comfyui --format kohya
      sdpo-bench export sdpo-emoji_align --to my-pipeline --merge
      sdpo-bench export sdpo-emoji_align --to my-lora --push-to-hub OWNER/NAME
    """
    from sdpo_bench.cli.commands.export import export_command

    export_command(run_name, target, **options)


@cli.command()
@click.argument("names", nargs=-1, required=True, shell_complete=complete("rewards"))
@click.option("--dry-run", is_flag=True, help="Print what would be downloaded, with sizes, and stop.")
def fetch(names: tuple[str, ...], dry_run: bool) -> None:
    """Put the weights of rewards and base models, and published prompt sets, in the cache of the hub.

    A machine without network then has them. A base model is a known name or OWNER/NAME[@REVISION] of the hub.

    \b
    Examples:
      sdpo-bench fetch hpsv2 sd-turbo --dry-run
      sdpo-bench fetch imagereward drawbench
      sdpo-bench fetch stabilityai/sdxl-turbo@main
    """
    from sdpo_bench.cli.commands.fetch import fetch_command

    fetch_command(names, dry_run)


@cli.command()
@click.option(
    "--plugin", shell_complete=complete("plugins"), help="Check that this method or reward keeps the contract."
)
@click.option(
    "--prompts", shell_complete=complete("prompts"), help="Check that the model reads this prompt set or file whole."
)
@click.option("--gpu", is_flag=True, help="Run the first minutes of a run, and say go or no-go for the rest.")
@click.option(
    "--model",
    shell_complete=complete("models"),
    help="The model of --prompts [default: emoji-turbo] or --gpu [default: the published run's].",
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting of the run of --gpu; repeatable.")
@click.option("--micro-batch", type=click.IntRange(1, MOST), help="The micro-batch of --gpu [default: 64].")
@click.option("--all", "show_all", is_flag=True, help="A line for each thing that is ok, not one for each area.")
@OUT
@DEVICE
@JSON
def doctor(**options: Any) -> None:
    """Say what works on this machine and what to type for the rest.

    Exit code 3 if something that every run needs is missing; with --plugin, 1 if the plugin fails a check; with --gpu,
    3 without a GPU or weights, 1 for no-go.

    \b
    Examples:
      sdpo-bench doctor
      sdpo-bench doctor --all
      sdpo-bench doctor --plugin my-method
      sdpo-bench doctor --prompts my-prompts.txt --model sd-turbo
      sdpo-bench doctor --gpu --micro-batch 16
    """
    from sdpo_bench.cli.commands.doctor import doctor_command

    doctor_command(**options)


@cli.command()
@click.argument("kind", type=Choice(["method", "reward"]))
@click.argument("name")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write, which must not exist [default: NAME].",
)
def new(kind: str, name: str, target: Path | None) -> None:
    """Write a package with a method or reward of your own: it installs, passes its tests and keeps the contract.

    \b
    Examples:
      sdpo-bench new method my-method
      sdpo-bench new reward my-reward --to work/my-reward
    """
    from sdpo_bench.cli.commands.new import new_command

    new_command(kind, name, target)


@cli.command("serve-reward")
@click.argument("name", shell_complete=complete("rewards"))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others can then use it.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any free one.")
@click.option("--max-mib", type=click.IntRange(1, 2**14), default=256, show_default=True, help="Largest request body.")
@click.option(
    "--body-timeout",
    type=Amount(0, MOST, min_open=True),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Longest that a request may wait for its turn and take to arrive, together.",
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Settings of the reward (reward.*).")
@DEVICE
@THREADS
def serve_reward(name: str, **options: Any) -> None:
    """Let runs in other environments use a reward over HTTP (--reward remote).

    \b
    Examples:
      sdpo-bench serve-reward imagereward --device cuda
      sdpo-bench serve-reward hpsv2 --set reward.backend=official --port 8800
    """
    from sdpo_bench.cli.commands.serve import serve_command

    serve_command(name, **options)


# -- list ----------------------------------------------------------------------------------------------------


@cli.command("list")
@click.argument("what", metavar="WHAT", type=Choice(LISTS))
@click.argument("name", required=False)
@OUT
@JSON
def list_(what: str, name: str | None, out: Path, as_json: bool) -> None:
    """Show what there is; WHAT is methods, rewards, models, presets, suites, studies, prompts, settings or runs.

    With the NAME of a method: its formula, cost and source. With that of a model: its licence, whether its repository
    is gated, steps, resolution, guidance, memory, download and presets.

    Of a run, "score - base" is the mean over its own step counts (eval.steps), without those of a later eval --steps.

    \b
    Examples:
      sdpo-bench list methods
      sdpo-bench list methods sdpo
      sdpo-bench list models sd3.5-medium
      sdpo-bench list settings --json
    """
    from sdpo_bench.cli.commands.list import show

    show(what, out, as_json, name)


@cli.command()
@click.argument("shell", metavar="SHELL", type=Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL: bash, zsh or fish.

    \b
    Example (bash):
      sdpo-bench completion bash > ~/.local/share/bash-completion/completions/sdpo-bench
    """
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise click.UsageError(f"no completion for '{shell}'.")
    click.echo(completion_class(cli, {}, "sdpo-bench", "_SDPO_BENCH_COMPLETE").source())


for _command in (
    sweep_commands.sweep,
    study_commands.study,
    report_commands.report,
    report_commands.compare,
    report_commands.show,
    report_commands.watch,
    report_commands.sample,
):
    cli.add_command(_command)
