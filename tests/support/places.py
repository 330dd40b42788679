"""Folders of the tests; importing this keeps torch to one thread and the hub out of reach, in a child process too."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)

HERE = Path(__file__).parents[1]
OFFICIAL = Path(os.environ.get("SDPO_BENCH_FIXTURES", HERE / "fixtures" / "official"))
"""Numbers computed by the official implementations."""
FLOW = Path(os.environ.get("SDPO_BENCH_FLOW_FIXTURES", HERE / "fixtures" / "flow"))
"""Numbers computed by the official implementations of flow-matching methods."""
