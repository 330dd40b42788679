"""What ``sdpo-bench doctor`` does: check this machine, a plugin, or how a model reads a list of prompts."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import click

from sdpo_bench.cli.options import echo_json
from sdpo_bench.doctor.machine import Finding, examine
from sdpo_bench.errors import MissingError, SdpoBenchError, UsageError
from sdpo_bench.plugins.parse_settings import parse_set
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.settings import DEFAULT_MODEL, ModelSettings, Runtime
from sdpo_bench.system.console_text import clean, print_table

MOST_WITH_TEXT = 2  # findings of one area that are ok and are shown with their text; of more, the names alone


def doctor_command(
    *,
    plugin: str | None,
    prompts: str | None,
    gpu: bool,
    model: str | None,
    sets: tuple[str, ...],
    micro_batch: int | None,
    show_all: bool,
    out: Path,
    device: str,
    as_json: bool,
) -> None:
    """``sdpo-bench doctor``.

    Raises:
        UsageError: options that do not go together, or unknown names.
        MissingError: something that every run needs is missing, the tokenizer that --prompts needs, or for --gpu a GPU
            or weights.
        SdpoBenchError: a plugin fails a check, or a check of --gpu says no-go.
    """
    if bool(plugin) + bool(prompts) + gpu > 1:
        raise UsageError("--plugin, --prompts and --gpu are different checks. Give one of them.")
    if model and not (prompts or gpu):
        raise UsageError("--model is for --prompts and --gpu: sdpo-bench doctor --prompts FILE --model NAME")
    if (sets or micro_batch) and not gpu:
        raise UsageError("--set and --micro-batch are for --gpu: sdpo-bench doctor --gpu --micro-batch 8")
    if gpu:
        _gpu(device, model, sets, micro_batch or Runtime().micro_batch, as_json)
        return
    if plugin:
        _conformance(plugin, as_json)
        return
    if prompts:
        _prompts(prompts, model or DEFAULT_MODEL, as_json)
        return
    findings = list(examine(out, device))
    problems = [f for f in findings if f.state == "problem"]
    if as_json:
        echo_json({"ok": not problems, "findings": [asdict(f) for f in findings]})
    else:
        _print(findings if show_all else folded(findings))
        click.echo(f"{len(problems)} problems, {sum(f.state == 'note' for f in findings)} notes")
    if problems:
        names = ", ".join(f"{f.area} {f.name}" for f in problems)
        raise MissingError(f"{len(problems)} of {len(findings)} things looked at are problems: {names}.")


def folded(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for all that is ok in an area, then its notes and problems."""
    lines: list[Finding] = []
    for area, group in groupby(findings, key=lambda finding: finding.area):
        members = list(group)
        good = [finding for finding in members if finding.state == "ok"]
        if len(good) > MOST_WITH_TEXT:
            names = ", ".join(finding.name for finding in good)
            lines.append(Finding(area, f"{len(good)} of {len(members)}", "ok", names))
        elif good:
            names = ", ".join(finding.name for finding in good)
            lines.append(Finding(area, names, "ok", "; ".join(dict.fromkeys(finding.text for finding in good))))
        lines += [finding for finding in members if finding.state != "ok"]
    return lines


def _print(findings: Sequence[Finding]) -> None:
    rows = [[f.area, f.name, f.state, f.text, f.mend or "-"] for f in findings]
    print_table(["area", "name", "state", "what", "type"], rows)


def _prompts(name: str, model: str, as_json: bool) -> None:
    """Which prompts of a set or file a model cuts, and which are the same to it."""
    from sdpo_bench.models.cut_prompts import read_from_files

    reading = read_from_files(ModelSettings(name=model), load_prompts(name))
    if reading is None:
        raise MissingError(f"the tokenizer of '{model}' is not on this machine. Type: sdpo-bench fetch {model}")
    if as_json:
        echo_json({"model": model, **reading.as_data()})
        return
    for text in reading.cut:
        click.echo(f"cut: {clean(text)}")
    if reading.unknown:
        click.echo(f"not known to the model: {' | '.join(map(clean, reading.unknown))}")
    for group in reading.same:
        click.echo(f"the same to the model: {' | '.join(map(clean, group))}")
    click.echo(f"{model}: {reading.summary}")


def _gpu(device: str, model: str | None, sets: tuple[str, ...], micro_batch: int, as_json: bool) -> None:
    from sdpo_bench.cli.run_plan import missing_weights
    from sdpo_bench.doctor.gpu import Rehearsal, configuration, find_gpu

    found = find_gpu(device)
    resolved = configuration(model, parse_set(sets))
    if names := missing_weights(resolved)["names"]:
        raise MissingError(f"the weights of {', '.join(names)} are not here. Type: sdpo-bench fetch {' '.join(names)}")
    verdicts = []
    for verdict in Rehearsal(resolved, found, micro_batch).verdicts():
        verdicts.append(verdict)
        if not as_json:
            click.echo(f"{verdict.state:9}{verdict.name}: {clean(verdict.text)}")
    stops = [verdict.name for verdict in verdicts if verdict.state == "no-go"]
    if as_json:
        echo_json({"ok": not stops, "run": resolved.run_id, "checks": [asdict(verdict) for verdict in verdicts]})
    if stops:
        raise SdpoBenchError(f"no-go for {resolved.run_id}: {', '.join(stops)}. Each line above says why.")
    if not as_json:
        click.echo(f"go: {resolved.run_id}")


def _conformance(name: str, as_json: bool) -> None:
    from sdpo_bench.doctor.checks import check_plugin, find_everywhere

    checks = []
    for plugin in find_everywhere(name):
        for check in check_plugin(plugin):
            checks.append(check)
            if not as_json:
                detail = f": {check.detail}" if check.detail else ""
                click.echo(f"{check.status:8}{check.kind[:-1]} {check.plugin}, {check.name}{detail}")
    failed = [check for check in checks if check.status == "failed"]
    if as_json:
        echo_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        skipped = sum(check.status == "skipped" for check in checks)
        click.echo(f"{len(checks) - len(failed) - skipped} ok, {len(failed)} failed, {skipped} skipped")
    if failed:
        raise SdpoBenchError(f"'{name}' fails {len(failed)} of {len(checks)} checks.")
