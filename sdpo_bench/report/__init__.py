"""Reports: figures and pages in every format, from a results folder alone.

May import: the top-level modules and the packages up to `studies`. The Python API has a function of the same name, so
this package can be called: ``sdpo_bench.report("results")``.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """Importing any part of a package makes it an attribute of ``sdpo_bench``, in the place of the API's function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("sdpo_bench.library.reports").report(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
