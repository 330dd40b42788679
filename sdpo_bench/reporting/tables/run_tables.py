"""Tables about runs rather than scores: list, configuration and software versions."""

from collections.abc import Iterable, Sequence

from sdpo_bench.reporting.tables.method_tables import training_words
from sdpo_bench.results.comparability import Arm, Setting, shown
from sdpo_bench.results.read_results import Run
from sdpo_bench.statistics import table as t


def configuration_table(setting: Setting, name: str) -> t.Table:
    """Every setting of every arm: one column where all agree, one an arm where they differ."""
    arms = setting.arms
    keys = sorted({key for arm in arms for key in arm.settings} - {"method.name"})
    varied = [key for key in keys if len({shown(arm.settings.get(key)) for arm in arms}) > 1]
    common = {**setting.settings, **{key: arms[0].settings.get(key) for key in keys if key not in varied}}
    groups = [t.Group("common to all", tuple(_pair(key, common[key]) for key in sorted(common)))]
    for arm in arms:
        own = tuple(_pair(key, arm.settings[key]) for key in varied if key in arm.settings)
        if own:
            groups.append(t.Group(f"{arm.label}, seeds {', '.join(str(run.seed) for run in arm.runs)}", own))
    columns = (t.Column("setting", "setting", numeric=False), t.Column("value", "value", numeric=False))
    return t.Table(name, f"Configuration: {training_words(setting)}", columns, tuple(groups))


def _pair(key: str, value: object) -> t.Row:
    return t.Row((t.word(key), t.word(shown(value))))


# -- runs ----------------------------------------------------------------------------------------------------


def runs_table(settings: Sequence[Setting]) -> t.Table:
    names = ("run", "setting", "method", "seed", "state", "message")
    columns = tuple(t.Column(name, name, numeric=name == "seed") for name in names)
    rows = []
    for setting in settings:
        for arm in setting.arms:
            rows += [_run_row(setting, arm, run) for run in arm.runs]
    return t.Table("runs", "Runs", columns, (t.Group("", tuple(rows)),))


def _run_row(setting: Setting, arm: Arm, run: Run) -> t.Row:
    texts = [t.word(run.id), t.word(setting.title), t.word(arm.label), t.Cell(str(run.seed), run.seed)]
    return t.Row((*texts, t.word(run.state), t.word(run.message)))


def versions_table(runs: Iterable[Run]) -> t.Table:
    """Package versions, commit and plugin sources: one row for each different combination, with its runs counted."""
    runs_by_origin: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        runs_by_origin.setdefault(_origin(run), []).append(run)
    columns = (t.Column("what", "what", numeric=False), t.Column("version", "version", numeric=False))
    groups = []
    for origin, members in sorted(runs_by_origin.items(), key=lambda pair: pair[1][0].id):
        title = f"{len(members):,} run{'s' * (len(members) != 1)}: {members[0].id}{' ...' * (len(members) > 1)}"
        groups.append(t.Group(title, tuple(t.Row((t.word(key), t.word(value))) for key, value in origin)))
    return t.Table("versions", "Versions", columns, tuple(groups))


def _origin(run: Run) -> tuple[tuple[str, str], ...]:
    versions, hashes = run.record.get("versions"), run.record.get("plugin_sha256")
    origin = {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}
    origin["git commit"] = str(run.record.get("git_commit") or "unknown")
    for kind, value in hashes.items() if isinstance(hashes, dict) else ():
        origin[f"{kind} source (SHA-256)"] = str(value)[:16]
    return tuple(sorted(origin.items()))
