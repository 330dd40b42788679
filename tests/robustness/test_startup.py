"""What happens before the command line itself is there."""

import importlib.abc
import sys

import pytest

from sdpo_bench.__main__ import main


class Stopped(importlib.abc.MetaPathFinder):
    """Ctrl-C while a module is being looked for."""

    def find_spec(self, name, path, target=None):
        if name == "sdpo_bench.cli.entry":
            raise KeyboardInterrupt


def test_ctrl_c_while_modules_are_read_is_no_traceback(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "sdpo_bench.cli.entry", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Stopped(), *sys.meta_path])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\nInterrupted before anything had begun.\n"
