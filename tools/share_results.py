"""Copy what a report needs of finished runs, without their weights: results small enough for version control.

    python -m tools.share_results results results/reference --grids sdpo,ddpo --seed 0

Settings, provenance, training logs, scores of every image and the suites' tables are kept. Adapters, checkpoints and
locks are not: ``sdpo-bench run`` with a run's settings trains it again. Picture grids are kept for the methods named.
Afterwards both folders are read as a report reads them, and the copy must tell the same.
"""

from pathlib import Path

import click

from sdpo_bench.errors import SdpoBenchError, UsageError
from sdpo_bench.reporting.assemble import Request, build_report
from sdpo_bench.reporting.markdown import as_json
from sdpo_bench.results.read_results import load_results
from sdpo_bench.runs.run_folder import RunFolder, run_folders
from sdpo_bench.system.files import atomic_write

GRID = "grid.png"
LEFT = ("lock", GRID)
"""Beside folders (weights and checkpoints) and unfinished files."""


def share(source: Path, target: Path, grids: tuple[str, ...] = (), seed: int = 0) -> int:
    """Copy the finished runs of ``source`` and their base models; how many runs.

    Args:
        grids: the methods whose grid is kept, for the run of ``seed``.

    Raises:
        UsageError: nothing is finished, or a run of ``target`` has other settings under the same name.
    """
    if source.resolve() == target.resolve():
        raise UsageError(f"'{target}' is where the results are. Choose another folder")
    finished = [folder for folder in run_folders(source) if folder.state_or_unknown == "done"]
    if not finished:
        raise UsageError(f"no finished run in '{source}'. See: sdpo-bench list runs --results {source}")
    for folder in finished:
        _refuse_other(folder, target / "runs" / folder.run_id / "run.json")
    for folder in finished:
        _copy(folder, target / "runs" / folder.run_id, grids, seed)
    for table in sorted((source / "suites").glob("*.json")):
        (target / "suites").mkdir(parents=True, exist_ok=True)
        atomic_write(target / "suites" / table.name, table.read_bytes())
    return sum(folder.record().get("kind") == "run" for folder in finished)


def _refuse_other(folder: RunFolder, old: Path) -> None:
    mine = folder.record().get("config")  # of every run, before any is copied: one may be damaged
    if old.exists() and RunFolder(old.parent).record().get("config") != mine:
        raise UsageError(f"'{old.parent}' is another run of the same name. Choose another folder")


def _copy(folder: RunFolder, target: Path, grids: tuple[str, ...], seed: int) -> None:
    record = folder.record()
    config = record["config"]
    shown = record.get("kind") == "run" and config["method"]["name"] in grids and config["seed"] == seed
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.path.iterdir()):
        kept = path.name not in LEFT or (shown and path.name == GRID)
        if path.is_file() and kept and path.suffix != ".tmp":
            atomic_write(target / path.name, path.read_bytes())


def told(results: Path) -> str:
    """Everything that the finished runs of a folder say in a report, as JSON."""
    return as_json(build_report(load_results(results), Request({"state": ["done"]})))


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.option("--grids", default="", help="Methods whose picture grid is kept, by comma.")
@click.option("--seed", default=0, show_default=True, help="Seed of the runs whose grid is kept.")
def main(source: Path, target: Path, grids: str, seed: int) -> None:
    """Copy the finished runs of SOURCE to TARGET without weights, and check that the copy reports the same."""
    try:
        number = share(source, target, tuple(name for name in grids.split(",") if name), seed)
        same = told(source) == told(target)
    except (SdpoBenchError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not same:
        raise click.ClickException(f"'{target}' does not report what '{source}' does. Is there more in it?")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    click.echo(f"{number} runs, {size / 2**20:.1f} MiB in {target}")


if __name__ == "__main__":
    main()
