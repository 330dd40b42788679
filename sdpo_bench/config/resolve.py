"""From what a person asked for to one fully resolved run configuration, knowing where every value came from.

Layers, later ones winning: defaults of the settings classes, of the base model, of the method, the preset, a run
file, the user's own ``--set`` and flags. Keys are ``section.key``; plugins' own settings are ``method.key`` and
``reward.key``. What they come to is validated once (``parse_settings``), and what does not fit together is refused
here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from sdpo_bench.api import Method, Reward, without_added_defaults
from sdpo_bench.config import batch_geometry, guidance_gradient
from sdpo_bench.config.compatibility import check_backprop_fits, check_features, check_fit, check_gradient
from sdpo_bench.config.presets import Preset, automatic_preset, find_preset
from sdpo_bench.config.reward_modes import check_discount, check_reward_mode, no_reward_mode
from sdpo_bench.config.run_file import RunFile
from sdpo_bench.config.run_id import training_id
from sdpo_bench.config.sampler_fit import check_samplers, flow_defaults
from sdpo_bench.errors import UsageError
from sdpo_bench.hashing import canonical
from sdpo_bench.ledger import AXES
from sdpo_bench.models.base_model import model_digest, refuse_unread
from sdpo_bench.models.known_models import KNOWN, BaseModel, known_model
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.plugins.contract_check import check_backprop, check_instance
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import Plugin, find
from sdpo_bench.plugins.setting_names import unknown_setting
from sdpo_bench.prompts.prompt_sets import file_digest
from sdpo_bench.scoring.reward_expression import Choice, choose
from sdpo_bench.scoring.weighted_sum import Basis
from sdpo_bench.seeds import checked_seed
from sdpo_bench.settings import DEFAULT_MODEL, SECTIONS, ModelSettings, PluginChoice, RunConfig, schedule_data

DEFAULT_METHOD = "sdpo"
DEFAULT_REWARD = "jpeg-compressibility"
"""Of a model that has none of its own."""
NAMES = ("method.name", "reward.name", "model.name")
FROM_FILE = ""
"""Mark of the layer of a run file, which knows the origin of each of its settings."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; ``None`` means "choose for me"."""

    method: str | None = None
    reward: str | None = None
    model: str | None = None
    preset: str | None = None
    seed: int | None = None
    overrides: Mapping[str, Any] | None = None
    file: RunFile | None = None


@dataclass(frozen=True)
class Resolved:
    """A valid configuration with its identity and the origin of each value."""

    config: RunConfig
    sources: dict[str, str]
    preset: str
    method: Any
    reward: Choice

    @property
    def data(self) -> dict[str, Any]:
        """The configuration as canonical plain data (all of it, evaluation included).

        The reward stands there as what it computes, however it is computed: a service's reward under its own name,
        without settings that are marked :data:`sdpo_bench.api.Execution` (those are ``config.reward.settings``).
        """
        reward = {"name": self.reward_name, "settings": self.described.identity_settings}
        sections = {name: getattr(self.config, name) for name in SECTIONS}
        plain = asdict(self.config) | {name: without_added_defaults(s) for name, s in sections.items() if s is not None}
        plain |= {"reward": reward, "schedule": schedule_data(self.config.schedule)}
        data: dict[str, Any] = canonical(plain)
        return {key: value for key, value in data.items() if key != "checkpoint" or value is not None}

    @cached_property
    def described(self) -> Reward:
        """The reward, for what it says of itself; nothing is loaded, but a service is asked what it serves."""
        c = self.config
        return self.reward.make(c.reward.settings, basis=Basis(c.model, c.schedule, c.sample.prompts))

    @property
    def reward_name(self) -> str:
        """Name of the trained reward in results."""
        return self.described.filed_as or self.config.reward.name

    @property
    def versions(self) -> dict[str, str]:
        """Versions that decide the numbers besides the settings."""
        model = {"model": self.model_digest} if self.model_digest else {}
        return {"reward": f"{self.reward_name}/{self.described.full_version}"} | model | self.prompt_files

    @cached_property
    def model_digest(self) -> str:
        """Content of a pipeline folder of the user's own, which can be edited under its name; else empty."""
        return model_digest(self.config.model.name)

    @property
    def prompt_files(self) -> dict[str, str]:
        """Digests of the prompts that training reads from files of the user's own, by setting."""
        chosen = self.config.checkpoint
        named = {"sample.prompts": self.config.sample.prompts, "checkpoint.prompts": chosen.prompts if chosen else ""}
        digests = {key: file_digest(name) for key, name in named.items() if name}
        return {key: value for key, value in digests.items() if value}

    @property
    def record(self) -> dict[str, Any]:
        """What ``run.json`` says of the run itself; its id can be computed from it again (``config.run_id``)."""
        return {
            "kind": "run",
            "run": self.run_id,
            "config": self.data,
            "reward_version": self.versions["reward"],
            "model_digest": self.model_digest,
            "prompt_files": self.prompt_files,
        }

    @property
    def run_id(self) -> str:
        """Folder name."""
        return training_id(self.data, self.versions)


def resolve(request: Request) -> Resolved:
    """Merge all layers and validate.

    Raises:
        UsageError: unknown names or keys, wrong types, values out of range, settings that do not fit together.
        MissingError: a plugin whose package is not installed.
    """
    layers, method, reward, preset = _layers(request)
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        merged |= layer
        of_file = request.file if source == FROM_FILE else None
        sources |= {key: of_file.source(key) if of_file else source for key in layer}
    places = _places(request.file, layers[-1][1]) if request.file else {}
    try:
        config, method_class = _build(merged, sources, places, method, reward)
    except UsageError as error:
        raise UsageError(_with_places(str(error), places)) from error
    chosen = build_method(config, method_class)
    config = batch_geometry.fit(config, chosen.members, sources)
    config = guidance_gradient.fit(config, chosen, sources)
    check_fit(config, chosen, sources)
    check_discount(config, chosen)
    check_samplers(config, chosen, sources)
    check_gradient(config, chosen, reward)
    check_backprop_fits(config, chosen)
    check_features(config, chosen, reward)
    return Resolved(config, sources, preset.name if preset else "", method_class, reward)


def _places(file: RunFile, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Where the run file has each setting that nothing on the command line replaces."""
    return {key: file.place(key) for key in file.settings if key not in overrides}


def _with_places(text: str, places: Mapping[str, str]) -> str:
    """An error text whose lines begin with settings, with the place of those that a run file has."""
    lines = [(line, places.get(line.partition(":")[0])) for line in text.split("\n")]
    return "\n".join(f"{line} ({place})" if place else line for line, place in lines)


def _layers(request: Request) -> tuple[list[tuple[str, dict[str, Any]]], Plugin, Choice, Preset | None]:
    overrides, file = dict(request.overrides or {}), dict(request.file.settings if request.file else {})
    _refuse_empty_names(request, file | overrides)
    preset_name = request.preset or (request.file.preset if request.file else None)
    preset = find_preset(preset_name) if preset_name is not None else None
    base = preset.common if preset else {}

    def pick(key: str, given: str | None, default: str) -> str:
        """The name under ``key``: from ``--set``, else from an option, the run file, the preset."""
        own = file.pop(key, None)
        return str(overrides.pop(key, None) or given or own or base.get(key) or default)

    method = find("methods", pick("method.name", request.method, DEFAULT_METHOD))
    named = [overrides.get("reward.name"), request.reward, file.get("reward.name"), base.get("reward.name")]
    wanted_reward = next((name for name in named if name), None)
    fallback_model = choose(str(wanted_reward)).native_model if wanted_reward else DEFAULT_MODEL
    given = overrides.get("model.revision") or file.get("model.revision") or base.get("model.revision")
    revision = str(given) if given else None
    model = known_model(pick("model.name", request.model, fallback_model), revision)
    if not (request.file and request.file.record):
        refuse_unread(ModelSettings(model.name, revision))
    reward = choose(pick("reward.name", request.reward, model.native_reward or DEFAULT_REWARD))
    if reward.variety:
        raise UsageError(
            f"reward '{reward.name}' compares the pictures of a prompt, so it is measured in evaluations and cannot be "
            f"trained on. Name another reward, and --set eval.rewards={reward.name}."
        )
    if preset is None and not (request.file and request.file.record):  # a record leaves nothing to a preset
        preset = automatic_preset(model.name, reward.name)
    own = {"seed": request.seed} if request.seed is not None else {}
    method_class = method.load()
    layers = [*_model_layers(model, revision), (f"method {method.name}", method_class.defaults)]
    layers = [(source, dict(layer)) for source, layer in layers]
    if preset:
        layers.append((f"preset {preset.name}", preset.settings_for(method_class.variant_of, method.name)))
    layers.append((f"method {method.name}", dict(method_class.fixed)))
    _check_fixed(method, method_class, file | overrides)
    names = {"method.name": method.name, "reward.name": reward.name, "model.name": model.name}
    layers += [("names", names), (FROM_FILE, file), ("you", overrides | own)]
    return [(source, _budget(layer)) for source, layer in layers], method, reward, preset


def _model_layers(model: BaseModel, revision: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Defaults that a model's files ask for and those it is known with, which win where it is known by name."""
    own = model.source, model.defaults
    flow = flow_defaults(ModelSettings(model.name, revision))
    if not flow:
        return [own]
    by_files = "the model's scheduler: flow matching", flow
    return [by_files, own] if model.name in KNOWN else [own, by_files]


def _refuse_empty_names(request: Request, overrides: Mapping[str, Any]) -> None:
    given = {key: getattr(request, key) for key in ("method", "reward", "model", "preset")}
    # Empty prompts are a choice only for what is evaluated.
    given |= {key: overrides.get(key) for key in (*NAMES, "sample.prompts", "checkpoint.prompts")}
    for key, name in given.items():
        if name is not None and not str(name).strip():
            kind = "prompts" if key.endswith("prompts") else f"{key.partition('.')[0]}s"
            raise UsageError(f"{key} is empty. Name one, or leave it out. See: sdpo-bench list {kind}")


def _check_fixed(method: Plugin, method_class: type[Method], overrides: Mapping[str, Any]) -> None:
    """A variant's name says what it is, so what it is named for cannot be changed under that name."""
    for key, value in method_class.fixed.items():
        if overrides.get(key, value) != value:
            parent = method_class.variant_of or "another method"
            raise UsageError(
                f"{method.name} is named for {key} = {value}, got {overrides[key]}. "
                f"Use --method {parent} --set {key}={overrides[key]}."
            )


def _budget(layer: dict[str, Any]) -> dict[str, Any]:
    """``budget.images = 3000`` means axis and amount; only one axis can stop a run."""
    axes = [axis for axis in AXES if f"budget.{axis}" in layer]
    if not axes:
        return layer
    if len(axes) > 1:
        raise UsageError(f"a run stops on one budget axis, got {', '.join(axes)}. Keep one of them.")
    amount = layer.pop(f"budget.{axes[0]}")
    return layer | {"budget.axis": axes[0], "budget.amount": amount}


def _build(
    merged: dict[str, Any], sources: dict[str, str], places: Mapping[str, str], method: Plugin, reward: Choice
) -> tuple[RunConfig, Any]:
    method_class = method.load()
    owners: dict[str, type] = SECTIONS | {"method": method_class.Settings}
    valid = {name: [f.name for f in fields(owner)] for name, owner in owners.items()}
    valid["reward"] = reward.setting_keys()
    tables: dict[str, dict[str, Any]] = {name: {} for name in valid}
    seed = merged.pop("seed", 0)
    if "method.reward" in merged and "reward" not in valid["method"]:
        raise no_reward_mode(method.name, merged["method.reward"], make_method(method.name, method_class, {}))
    for key, value in merged.items():
        section, _, name = key.partition(".")
        if section in ("method", "reward") and name == "name":
            continue
        _check_key(key, valid, places.get(key) or sources.get(key, ""))
        tables[section][name] = value
    built: dict[str, Any] = {name: validate(owner, tables[name], name) for name, owner in owners.items()}
    choices: dict[str, Any] = {
        "method": PluginChoice(method.name, without_added_defaults(built.pop("method"))),
        "reward": PluginChoice(reward.name, reward.validate(tables["reward"])),
    }
    if method_class.signal != "advantage":
        built["advantage"] = None
    if built["checkpoint"].choose == "last" or method_class.signal == "none":
        built["checkpoint"] = None
    if not built["ema"].decay or method_class.signal == "none":
        built["ema"] = None
    return RunConfig(seed=checked_seed(seed), **choices, **built), method_class


def _check_key(key: str, owners: Mapping[str, Sequence[str]], source: str) -> None:
    valid = [f"{s}.{name}" for s, names in owners.items() for name in names] + ["seed"]
    if key not in valid:
        unlisted = [*NAMES, *(f"budget.{axis}" for axis in AXES)]
        raise unknown_setting(key, valid, unlisted=unlisted, source="" if source == "you" else source)


def build_method(config: RunConfig, method_class: type[Method]) -> Method:
    """The configured method, ready to be asked what it needs."""
    method = make_method(config.method.name, method_class, config.method.settings)
    if method.signal == "gradient" or method.granularity == "sample":
        check_backprop(f"method '{config.method.name}'", method, config.schedule.steps)
    return method


def make_method(name: str, method_class: type[Method], values: Mapping[str, Any]) -> Method:
    """A method with the settings ``values``.

    Raises:
        UsageError: wrong settings, or a method that breaks the contract. RunFailed: it cannot be made.
    """
    settings = validate(method_class.Settings, values, "method")
    with plugin_code(f"method '{name}': __init__()"):
        method = method_class(settings)
    check_instance(f"method '{name}'", method)
    check_reward_mode(name, method)
    return method
