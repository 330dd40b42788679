"""``sdpo-bench fetch``: put published weights into the hub cache, for a machine that will have no network."""

from dataclasses import dataclass

import click

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.models.catalogue import KNOWN
from sdpo_bench.models.hub import HubFile, cached, cached_pipeline, fetch, find_pipeline
from sdpo_bench.models.pipeline_files import published
from sdpo_bench.plugins.registry import find, plugin_tag, plugins


@dataclass(frozen=True)
class Item:
    """One download: a file of a reward, or the whole pipeline of a base model (``file`` is None)."""

    owner: str
    label: str
    size: int
    here: bool
    file: HubFile | None
    location: str = ""


def fetch_command(names: tuple[str, ...], dry_run: bool) -> None:
    """Print what would be downloaded and how large it is, then download what is not cached.

    Raises:
        UsageError: a name that is neither a reward nor a base model. MissingError: the hub cannot be reached.
    """
    items = [item for name in names for item in _items(name)]
    for item in items:
        state = "cached" if item.here else f"{item.size / 1e9:.2f} GB" if item.size else "size unknown"
        click.echo(f"{item.owner}: {item.label} ({state})")
    missing = [item for item in items if not item.here]
    click.echo(f"{len(missing)} of {len(items)} to download, {sum(i.size for i in missing) / 1e9:.2f} GB known")
    for item in [] if dry_run else missing:
        click.echo(f"{item.owner}: downloading {item.label}", err=True)
        _download(item)


def _items(name: str) -> list[Item]:
    if name in KNOWN:
        return _pipeline(name)
    rewards = plugins("rewards")
    if plugin_tag(name) not in {plugin.tag for plugin in rewards.values()}:
        raise UsageError(f"'{name}' is neither a reward nor a base model.{nearest(name, [*rewards, *KNOWN])}")
    files: tuple[HubFile, ...] = getattr(find("rewards", name).load(), "weights", ())
    return [Item(name, file.label, file.size, cached(file), file) for file in files]


def _pipeline(name: str) -> list[Item]:
    location = KNOWN[name].location
    if location.startswith("asset:"):
        return []
    files = published(name)
    # Repositories hold float32 weights, which is what the pipeline's own download takes.
    size = 4 * sum(files.parameters.values()) if files else 0
    return [Item(name, location, size, cached_pipeline(location) is not None, None, location)]


def _download(item: Item) -> None:
    hint = "Type the same command again on a machine with network; what is complete is not downloaded twice."
    if item.file is not None:
        fetch(item.file, hint=hint)
        return
    find_pipeline(item.location, hint=hint)
