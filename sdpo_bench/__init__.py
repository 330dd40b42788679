"""sdpo-bench: a benchmark and evaluation harness for RL alignment of few-step diffusion models.

Data passes through the packages once, in one direction. A package imports only packages above it in this list; the
``layers`` contract in ``pyproject.toml`` is the authority, and ``lint-imports`` checks it.

============================================  ========================================================================
package                                       stage
============================================  ========================================================================
``api``, ``errors``, ``hashing``              the plugin contract, error types, digests
``seeds``                                     a named seed for every random draw
``settings``, ``ledger``, ``reward_formula``  every setting, the cost of a run, the syntax of ``A*0.5+B``
``system``                                    files, locks, signals, processes, time-outs
``plugins``                                   find, load and call methods, rewards and studies
``prompts``                                   prompt sets
``models``                                    base models, and the policy: a denoiser with one LoRA adapter
``rollout``                                   1. sample trajectories; log-probabilities of stored steps
``scoring``                                   2. score pictures; predict the rewards of denoising steps
``config``                                    resolve what a user typed to one configuration and a run id
``runs``                                      a run on disk
``advantages``                                3. turn rewards into returns, advantages and the learning signal
``training``                                  4. update the policy in a given order; checkpoints
``evaluation``                                5. score checkpoints and the base model at every step count
``running``                                   stages 1 to 5 for one run
``estimates``                                 predict time and memory before a run starts
``statistics``                                6. estimates with intervals, tests, tables as data
``results``                                   read a results folder; decide which runs may be compared
``sweep``                                     many runs: suites, plans, executors
``studies``                                   experiments on the methods' assumptions
``reporting``                                 7. figures, tables and pages
``doctor``                                    checks of this machine and of plugins
``library``                                   the Python API: what this package offers by name
``cli``                                       the command line
============================================  ========================================================================

Methods and rewards are plugins in folders of their own, ``methods/`` and ``rewards/``. The core imports none of them.
``methods/sdpo.py`` says where each equation of the SDPO paper lives.

Importing this package is cheap: modules that need torch import it themselves. Five functions are the Python API
(``docs/python.md``): :func:`run`, :func:`load_results`, :func:`load_policy`, :func:`compare`, :func:`report`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdpo_bench.library.comparisons import Comparison, compare
    from sdpo_bench.library.policies import Policy, load_policy
    from sdpo_bench.library.reports import ReportText, report
    from sdpo_bench.library.results import Results, Run, load_results
    from sdpo_bench.library.runs import run

__version__ = "0.2.0"

_HOMES = {
    "run": "runs",
    "Run": "results",
    "load_results": "results",
    "Results": "results",
    "load_policy": "policies",
    "Policy": "policies",
    "compare": "comparisons",
    "Comparison": "comparisons",
    "report": "reports",
    "ReportText": "reports",
}
"""The module of ``sdpo_bench.library`` that each public name comes from, imported when it is first asked for."""

__all__ = [
    "Comparison",
    "Policy",
    "ReportText",
    "Results",
    "Run",
    "compare",
    "load_policy",
    "load_results",
    "report",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sdpo_bench' has no attribute '{name}'")
    return getattr(import_module(f"sdpo_bench.library.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
