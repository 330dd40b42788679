"""``sdpo-bench fetch``: put published weights and prompts into the hub cache, for a machine without network."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.models.hub import HubFile, cached, cached_pipeline, find, find_pipeline
from sdpo_bench.models.known_models import KNOWN, BaseModel, known_model
from sdpo_bench.models.pipeline_files import published
from sdpo_bench.plugins.registry import find as find_plugin
from sdpo_bench.plugins.registry import plugin_tag, plugins
from sdpo_bench.prompts.hub_prompts import parse_hub
from sdpo_bench.prompts.published_sets import PUBLISHED

HINT = "Type the same command again on a machine with network; what is complete is not downloaded twice."


@dataclass(frozen=True)
class Item:
    """One download: a file of a reward, or the whole pipeline of a base model."""

    owner: str
    label: str
    size: int
    cached: bool
    download: Callable[[], Path]
    access: str = ""
    """What the download needs beforehand."""


def fetch_command(names: tuple[str, ...], dry_run: bool) -> None:
    """Print what would be downloaded and how large it is, then download what is not cached.

    Raises:
        UsageError: a name that is no reward, base model or prompt set. MissingError: the hub cannot be reached.
    """
    items = [item for name in names for item in items_of(name)]
    for item in items:
        state = "cached" if item.cached else f"{item.size / 1e9:.2f} GB" if item.size else "size unknown"
        click.echo(f"{item.owner}: {item.label} ({state})")
    missing = [item for item in items if not item.cached]
    for item in missing:
        if item.access:
            click.echo(f"{item.owner} is gated: {item.access}")
    click.echo(f"{len(missing)} of {len(items)} to download, {sum(i.size for i in missing) / 1e9:.2f} GB known")
    for item in [] if dry_run else missing:
        click.echo(f"{item.owner}: downloading {item.label}", err=True)
        item.download()


def items_of(name: str) -> list[Item]:
    """The downloads of a reward, a base model (a known one, or ``OWNER/NAME[@REVISION]``) or a published prompt set.

    Raises:
        UsageError: none of them.
    """
    if name in KNOWN:
        return _pipeline(name)
    if name in PUBLISHED:
        chosen = PUBLISHED[name]
        return [Item(name, f"{chosen.location}, licence {chosen.licence}", 0, chosen.cached, chosen.fetch)]
    if hub := parse_hub(name):
        return [Item(name, "prompts of a dataset", 0, bool(hub.cached()), lambda: hub.files()[0])]
    if "/" in name and not os.path.isdir(name):
        repo, _, revision = name.partition("@")
        return [_hub_pipeline(known_model(repo, revision or None), revision or None)]
    rewards = plugins("rewards")
    if plugin_tag(name) not in {plugin.tag for plugin in rewards.values()}:
        known = [*rewards, *KNOWN, *PUBLISHED]
        raise UsageError(f"'{name}' is neither a reward nor a base model nor a prompt set.{nearest(name, known)}")
    files: tuple[HubFile, ...] = getattr(find_plugin("rewards", name).load(), "weights", ())
    return [Item(name, f.label, f.size, cached(f) is not None, partial(find, f, hint=HINT)) for f in files]


def missing_names(names: Iterable[str]) -> list[str]:
    """Those of these rewards and known models that have a download which is not in the cache."""
    return [name for name in names if not all(item.cached for item in items_of(name))]


def _pipeline(name: str) -> list[Item]:
    model = KNOWN[name]
    return [] if model.location.startswith("asset:") else [_hub_pipeline(model)]


def _hub_pipeline(model: BaseModel, revision: str | None = None) -> Item:
    files = published(model.name)
    size = files.download_bytes if files else 0
    here = cached_pipeline(model.location, revision) is not None
    facts = [
        model.location,
        *([f"licence {model.licence}"] if model.licence else []),
        *(["gated"] if model.gated else []),
    ]
    hint = model.fetch_hint if model.gated else HINT
    download = partial(find_pipeline, model.location, revision, hint=hint)
    owner = f"{model.name}@{revision}" if revision else model.name
    return Item(owner, ", ".join(facts), size, here, download, model.access)
