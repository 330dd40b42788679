"""Whatever a third party's plugin does wrong, the command says so by the plugin's name, in words, and fails."""

import importlib
import sys
from textwrap import indent

import pytest

from sdpo_bench.api import Method, Reward
from sdpo_bench.cli.entry import main
from sdpo_bench.errors import SdpoBenchError
from sdpo_bench.plugins.contract_check import check_backprop, check_class, check_instance

REWARD = """
import sys
import torch
from sdpo_bench.api import Reward

class Odd(Reward):
    '''A reward that does something odd.'''
    version, scale, source, native_model = "1", "brightness", "this file", "emoji-turbo"

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3)).float().cpu()
"""
METHOD = """
import sys
from dataclasses import dataclass, replace
import torch
from sdpo_bench.api import Backprop, Critic, Loss, Method, Search
from sdpo_bench.methods.ddpo import DDPO

class Odd(DDPO):
    '''A method that does something odd.'''
"""
SEARCH = """
import torch
from sdpo_bench.api import Search

class Odd(Search):
    '''A search that does something odd.'''
    candidates = 2

    def propose(self, best, fresh):
        return fresh
"""
SETTINGS = """
@dataclass(frozen=True)
class OddSettings:
    size: {hint} = {default}

    def __post_init__(self):
        {harm}

class Odd(Odd):
    '''A method with odd settings.'''
    Settings = OddSettings
"""


class Package:
    """A third party's distribution with one plugin, called ``odd-one``."""

    def __init__(self, folder, monkeypatch, capfd):
        self.folder, self.monkeypatch, self.capfd = folder, monkeypatch, capfd

    def install(self, kind, source):
        package = self.folder / "oddities"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "plugin.py").write_text(source)
        info = self.folder / "oddities-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oddities\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sdpo_bench.{kind}]\nodd-one = oddities.plugin:Odd\n")
        self.monkeypatch.syspath_prepend(str(self.folder))
        importlib.invalidate_caches()

    def call(self, *arguments):
        """Exit code and what was said."""
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        said = self.capfd.readouterr()
        return end.value.code, said.out + said.err

    def run(self, pipe, *more):
        few = self.folder / "few.txt"
        few.write_text("cat\ndog\n")
        settings = [
            "schedule.steps=2",
            "sample.images_per_epoch=4",
            "update.minibatch=2",
            "update.accumulation=1",
            f"sample.prompts={few}",
            f"eval.train={few}",
            "eval.steps=1",
            "eval.images_per_prompt=1",
        ]
        if "best_of_n" in more or "search" in more:
            settings = [text for text in settings if not text.startswith(("sample.", "update."))]
        sets = [word for text in settings for word in ("--set", text)]
        budget = [] if "search" in more else ["--budget", "images=4"]
        words = [word for word in more if word != "search"]
        return self.call(
            "run", "--model", pipe, "--device", "cpu", "--out", self.folder / "out", *budget, *sets, *words
        )


@pytest.fixture
def package(tmp_path, monkeypatch, capfd):
    yield Package(tmp_path, monkeypatch, capfd)
    for name in [name for name in sys.modules if name.partition(".")[0] == "oddities"]:
        del sys.modules[name]


def is_said(code, said, wanted, codes=(1, 2)):
    assert "defect" not in said and "Traceback" not in said, said
    assert code in codes, said
    assert wanted in said, said
    assert "odd-one" in said or "'Odd'" in said or "OddSettings" in said, said


DECLARED_BY_REWARD = {
    "version = 1.5": "has version = 1.5; expected a text",
    "version = None": "has version = None",
    "source = ''": "has source = ''",
    "scale = 3": "has scale = 3",
    "native_model = None": "has native_model = None",
    "differentiable = 'yes'": "has differentiable = 'yes'; expected True or False",
    "Settings = int": "has Settings = <class 'int'>; expected a dataclass",
    "__call__ = Reward.__call__": "does not define __call__",
    "def __init__(self, settings, device): pass": "has no settings; expected a call of super().__init__()",
    "full_version = 7": "has full_version = 7; expected a text",
    "filed_as = 7": "has filed_as = 7",
    "commits = [1]": "has commits = [1]",
    "commits = {'a': 1}": "has commits = {'a': 1}",
    "identity_settings = {'a': {1, 2}}": "has identity_settings = {'a': {1, 2}}",
    "identity_settings = property(lambda self: 1 / 0)": "identity_settings raised ZeroDivisionError: division by zero",
}
THROUGH_STEPS = "signal, granularity = 'gradient', 'trajectory'"
DECLARED_BY_METHOD = {
    "signal = 'praise'": "has signal = 'praise'; expected one of advantage, preference, gradient, none",
    "signal = 'none'": "belongs to subclasses of sdpo_bench.api.Search",
    "granularity = None": "has granularity = None",
    "final_image = 'best'": "has final_image = 'best'; expected one of sample, predicted",
    "defaults = None": "has defaults = None; expected a dict of settings by name",
    "fixed = []": "has fixed = []",
    "variant_of = None": "has variant_of = None",
    "Settings = {}": "has Settings = {}; expected a dataclass",
    "loss = Method.loss": "does not define loss",
    "members = 0": "has members = 0; expected a whole number from 1",
    "members = 2.0": "has members = 2.0",
    "members = None": "has members = None",
    "members = True": "has members = True",
    "shared_noise = 1": "has shared_noise = 1",
    "needs_kl = None": "has needs_kl = None",
    "reward_mode = 'dense'": "has reward_mode = 'dense'; expected one of sparse, predicted, full",
    "reward_guard = ''": "has reward_guard = ''",
    "needs_reference = property(lambda self: {}['x'])": "needs_reference raised KeyError: 'x'",
    "def __init__(self, settings): pass": "has no settings; expected a call of super().__init__()",
    "signal = 'gradient'": "has signal = 'gradient' with granularity = 'step'; expected granularity = 'trajectory'",
    "signal, granularity = 'gradient', 'noised'": "with granularity = 'noised'; expected granularity = 'trajectory'",
    f"{THROUGH_STEPS}\ndef backprop(self): pass": "backprop() raised TypeError",
    f"{THROUGH_STEPS}\ndef backprop(self, steps): return 1": "has backprop() = 1",
    f"{THROUGH_STEPS}\ndef backprop(self, steps): return Backprop(1.0, 1)": "has backprop().depth = 1.0",
    f"{THROUGH_STEPS}\ndef backprop(self, steps): return Backprop(1, 2)": (
        "has backprop().window = 2 with final_image = 'sample'; expected window = 1, or final_image = 'predicted'"
    ),
}


def refusal(source, harm, base, *arguments):
    """What the checks of a class and of its instance say of a source with one wrong line."""
    names = {}
    exec(source + indent(harm, "    ") + "\n", names)
    odd = names["Odd"]
    with pytest.raises(SdpoBenchError) as found:
        check_class("plugin 'odd-one'", base, odd)
        plugin = odd(odd.Settings(), *arguments)
        check_instance("plugin 'odd-one'", plugin)
        check_backprop("plugin 'odd-one'", plugin, 4)
    return str(found.value)


@pytest.mark.parametrize("harm", DECLARED_BY_REWARD)
def test_what_a_reward_declares_wrongly_is_named(harm):
    said = refusal(REWARD, harm, Reward, "cpu")
    assert said.startswith("plugin 'odd-one'") and DECLARED_BY_REWARD[harm] in said


@pytest.mark.parametrize("harm", DECLARED_BY_METHOD)
def test_what_a_method_declares_wrongly_is_named(harm):
    said = refusal(METHOD, harm, Method)
    assert said.startswith("plugin 'odd-one'") and DECLARED_BY_METHOD[harm] in said


REWARDS = {
    "version = 1.5": "has version = 1.5; expected a text",
    "def __init__(self): pass": "__init__() raised TypeError",
    "def load(self): sys.exit('done')": "load() ended the program: sys.exit('done')",
    "def load(self): open('no/such.bin')": "load() raised FileNotFoundError",
    "def __call__(self, images, prompts): return {}['x']": "raised KeyError: 'x' (at plugin.py:",
}


@pytest.mark.parametrize("harm", REWARDS)
def test_a_run_names_a_reward_that_is_at_fault(package, tiny_pipe, harm):
    package.install("rewards", REWARD + indent(harm, "    ") + "\n")
    is_said(*package.run(tiny_pipe, "--method", "ddpo", "--reward", "odd-one"), REWARDS[harm])


METHODS = {
    "members = 0": "has members = 0; expected a whole number from 1",
    f"{THROUGH_STEPS}\ndef backprop(self, steps): return 1": "has backprop() = 1",
    "def __init__(self): pass": "__init__() raised TypeError",
    "def loss(self, batch): return {}['x']": "loss() raised KeyError: 'x' (at plugin.py:",
    "def loss(self, batch): return replace(super().loss(batch), metrics=None)": "metrics are no dict",
    "def loss(self, batch): return replace(super().loss(batch), metrics={'a': 'b'})": "'a' is str; expected a finite",
    "def loss(self, batch): return replace(super().loss(batch), metrics={'a': batch.rewards})": "'a' is of shape (",
    "def loss(self, batch): return replace(super().loss(batch), metrics={'a': float('nan')})": "'a' is nan",
    "def loss(self, batch):\n    found = super().loss(batch)\n    found.value.backward()\n    return found": (
        "loss() raised RuntimeError: Trying to backward"  # where another minibatch shares its denoiser call
    ),
    "kept = 0\ndef loss(self, batch):\n    found = super().loss(batch)\n    Odd.kept = found.value + Odd.kept\n"
    "    return replace(found, value=Odd.kept)": "the gradient of its loss raised RuntimeError: Trying to backward",
    "def critic(self): pass": "critic() raised TypeError",
    "def critic(self, shape, steps): return torch.nn.Linear(1, 1)": "critic() gave Linear",
    "def critic(self, shape, steps): return Critic(lambda x, t: x, 1e-3)": "critic() gave function",
    "def critic(self, shape, steps): return Critic(torch.nn.Flatten(), 1e-3)": "a network without parameters",
    "def critic(self, shape, steps): return Critic(torch.nn.Linear(1, 1), 0)": "gave lr = 0",
    "def critic(self, shape, steps): return Critic(torch.nn.Linear(1, 1), 1e-3)": "critic, a Linear, raised TypeError",
    "def critic(self, shape, steps): return Critic(type('Net', (torch.nn.Linear,), {'forward': lambda self, x, t: "
    "self.weight * x})(1, 1), 1e-3)": "critic, a Net, gave (",
}


@pytest.mark.parametrize("harm", METHODS)
def test_a_run_names_a_method_that_is_at_fault(package, tiny_pipe, harm):
    package.install("methods", METHOD + indent(harm, "    ") + "\n")
    reward = "emoji-style" if "gradient" in harm else "jpeg-incompressibility"
    code, said = package.run(tiny_pipe, "--method", "odd-one", "--reward", reward)
    assert "defect" not in said and "Traceback" not in said and code in (1, 2), said
    assert METHODS[harm] in said, said
    assert "odd-one" in said or "'Odd'" in said or "the method's critic" in said, said


SEARCHES = {
    "candidates = 0": "has candidates = 0; expected a whole number from 1",
    "candidates = 1.5": "has candidates = 1.5",
    "def propose(self, best): pass": "propose() raised TypeError",
    "def propose(self, best, fresh): return None": "propose() gave <class 'NoneType'>",
    "def propose(self, best, fresh): return fresh[:1]": "propose() gave torch.float32 (1, ",
    "def propose(self, best, fresh): return fresh.double()": "propose() gave torch.float64",
    "def propose(self, best, fresh): return fresh / 0": "gave noise that is NaN or infinite",
}


@pytest.mark.parametrize("harm", SEARCHES)
def test_a_run_names_a_search_that_is_at_fault(package, tiny_pipe, harm):
    package.install("methods", SEARCH + indent(harm, "    ") + "\n")
    is_said(*package.run(tiny_pipe, "--method", "odd-one", "--reward", "emoji-style", "search"), SEARCHES[harm])


@pytest.mark.parametrize(
    ("hint", "default", "harm", "wanted"),
    [
        (
            "int",
            "1",
            "self.size / 0",
            "OddSettings (method.*) raised ZeroDivisionError: division by zero (at plugin.py:",
        ),
        ("int", "1", "sys.exit(0)", "OddSettings (method.*) ended the program: sys.exit(0)"),
        ("torch.Tensor", "None", "pass", "OddSettings (method.*) raised PydanticSchemaGenerationError"),
        ("'NoSuchType'", "None", "pass", "OddSettings (method.*) raised NameError"),
        ("set", "frozenset()", "pass", "method.size: got frozenset(), which no record of a run can hold"),
    ],
)
def test_a_run_names_settings_that_are_at_fault(package, tiny_pipe, hint, default, harm, wanted):
    package.install("methods", METHOD + SETTINGS.format(hint=hint, default=default, harm=harm))
    code, said = package.run(tiny_pipe, "--method", "odd-one", "--reward", "emoji-style")
    assert code in (1, 2) and wanted in said and "defect" not in said and "Traceback" not in said, said


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("rewards", REWARD + "    def load(self): sys.exit(0)\n"),
        ("rewards", REWARD + "    version = 1\n"),
        ("methods", METHOD + "    members = 0\n"),
        ("methods", METHOD + "    def loss(self, batch): return {}['x']\n"),
    ],
)
def test_the_doctor_shows_a_failed_check(package, kind, source):
    package.install(kind, source)
    code, said = package.call("doctor", "--plugin", "odd-one")
    assert code == 1 and "failed" in said and "'odd-one' fails" in said and "Traceback" not in said, said


def test_the_doctor_goes_on_after_a_reward_that_cannot_say_whether_it_is_usable(package):
    package.install("rewards", REWARD + "    @classmethod\n    def unavailable(cls): return 3\n")
    code, said = package.call("doctor", "--out", package.folder, "--device", "cpu")
    assert code == 3 and "unavailable() " in said and "emoji-turbo" in said, said


@pytest.mark.parametrize("words", [("list", "rewards"), ("run", "--reward", "odd-one", "--dry-run")])
def test_an_import_that_ends_the_program_does_not(package, words):
    package.install("rewards", REWARD + "sys.exit(0)\n")
    code, said = package.call(*words)
    assert "Traceback" not in said and "odd-one" in said
    assert code == (0 if words[0] == "list" else 3), said


def test_a_broken_reward_does_not_stand_in_the_way_of_advice_about_others(package, tiny_pipe):
    package.install("rewards", "class Odd: ...\n")
    code, said = package.call("run", "--method", "draft", "--reward", "jpeg-compressibility", "--dry-run")
    assert code == 2 and "Rewards that have one: emoji-align" in said, said


def test_a_traceback_is_there_for_those_who_ask(package, tiny_pipe):
    package.install("rewards", REWARD + "    def load(self): return {}['x']\n")
    from sdpo_bench.errors import RunFailed

    with pytest.raises(RunFailed) as found:
        main(
            [
                "--debug",
                "run",
                "--model",
                str(tiny_pipe),
                "--method",
                "ddpo",
                "--reward",
                "odd-one",
                "--out",
                str(package.folder / "out"),
                "--device",
                "cpu",
            ]
        )
    assert isinstance(found.value.__cause__, KeyError)
