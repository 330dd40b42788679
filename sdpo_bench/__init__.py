"""sdpo-bench: a benchmark and evaluation harness for RL alignment of few-step diffusion models.

Importing the package costs nothing: torch and its kin are imported by the modules that need them.
"""

__version__ = "0.1.0"
