"""The training loop that all networks share: several one-thread workers, Muon and AdamW, EMA, exact resume.

Small networks on a CPU gain little from threads inside an operation and lose everything when another
process holds a core, so work is spread over processes that meet once an iteration to average gradients. All
randomness of iteration k on worker r comes from a generator seeded by (seed, k, r): a checkpoint needs no
random state, and a resumed run continues exactly as the uninterrupted one.
"""

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

LossFunction = Callable[[torch.Generator, int], tuple[Tensor, Mapping[str, Tensor]]]
"""(generator, pictures of this worker) -> scalar loss, detached scalars to print."""

BORDERS = ("embed", "conv_in", "conv_out", "border", "heads")
"""Parts of the names of first and last layers and embeddings, which Muon does not suit."""


@dataclass(frozen=True)
class Plan:
    """Length and step sizes of one training."""

    iterations: int
    batch: int = 64
    """Samples of one iteration over all workers."""
    seed: int = 0
    adam_lr: float = 1.5e-3
    """Peak step size of biases, norms, embeddings, first and last layers."""
    muon_lr: float = 0.02
    """Peak step size of the inner matrices (their update has spectral norm about 1)."""
    weight_decay: float = 0.01
    warmup: int = 50
    decay_from: float = 0.3
    """Fraction of the iterations after which step sizes fall linearly to 2 % of the peak."""
    ema: float = 0.998
    """Decay of the weight average; 0 keeps the plain weights."""

    def step_size(self, iteration: int) -> float:
        """Factor on both step sizes."""
        rest = (1 - iteration / self.iterations) / (1 - self.decay_from)
        return min(1.0, (iteration + 1) / self.warmup) * max(0.02, min(1.0, rest))


@dataclass(frozen=True)
class Worker:
    """This process among its equals."""

    rank: int = 0
    count: int = 1

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all workers."""
        if self.count == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, (flat / self.count).split([p.numel() for p in parameters])):
            parameter.grad = part.view_as(parameter)


def run_workers(count: int, function: Callable[[Worker], None], rendezvous: Path) -> None:
    """Run ``function`` in ``count`` processes of one thread each and wait for all of them."""
    if count == 1:
        torch.set_num_threads(1)
        function(Worker())
        return
    rendezvous.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_enter, (count, function, str(rendezvous.resolve())), nprocs=count)
    rendezvous.unlink(missing_ok=True)


def _enter(rank: int, count: int, function: Callable[[Worker], None], rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count)
    try:
        function(Worker(rank, count))
    finally:
        dist.destroy_process_group()


class Muon:
    """Muon (K. Jordan 2024): momentum whose matrices are replaced by their nearest orthogonal ones.

    On these networks it reaches a given loss in well under the iterations of AdamW. Convolutions count as
    matrices of shape (out, in x kernel).
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    """Quintic Newton-Schulz iteration of the Muon write-up."""

    def __init__(self, parameters: list[nn.Parameter], weight_decay: float):
        self.parameters = parameters
        self.weight_decay = weight_decay
        self.momentum = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, step_size: float, beta: float = 0.95) -> None:
        """One update with Nesterov momentum."""
        for parameter, momentum in zip(self.parameters, self.momentum):
            momentum.lerp_(parameter.grad, 1 - beta)
            update = self._orthogonal(parameter.grad.lerp(momentum, beta).flatten(1))
            gain = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            parameter.mul_(1 - step_size * self.weight_decay)
            parameter.add_(update.view_as(parameter), alpha=-step_size * gain)

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        a, b, c = self.COEFFICIENTS
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x


@dataclass
class Trainer:
    """Trains ``modules`` by a loss function; the averaged weights are in ``average`` afterwards."""

    name: str
    modules: dict[str, nn.Module]
    plan: Plan
    folder: Path
    worker: Worker
    checkpoint_every: int = 250
    borders: tuple[str, ...] = BORDERS
    average: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.average = {key: copy.deepcopy(module).eval() for key, module in self.modules.items()}
        named = [(n, p) for m in self.modules.values() for n, p in m.named_parameters() if p.requires_grad]
        inner = [p for n, p in named if p.ndim >= 2 and not any(part in n for part in self.borders)]
        chosen = {id(p) for p in inner}
        self.parameters = [p for _, p in named]
        self.muon = Muon(inner, self.plan.weight_decay)
        self.adam = torch.optim.AdamW(
            [p for p in self.parameters if id(p) not in chosen], betas=(0.9, 0.99), weight_decay=1e-3
        )
        self.iteration = 0

    @property
    def checkpoint(self) -> Path:
        """File of the unfinished training."""
        return self.folder / f"{self.name}.checkpoint.pt"

    def run(self, loss_function: LossFunction, report: Callable[[int], None] | None = None) -> None:
        """Train to the end, from the checkpoint if there is one; ``report`` runs at every checkpoint."""
        self._resume()
        started, totals, seen = time.time(), {}, 0
        while self.iteration < self.plan.iterations:
            for key, value in self._iterate(loss_function).items():
                totals[key] = totals.get(key, 0.0) + float(value)
            seen += 1
            if self.worker.rank == 0 and (self.iteration % 50 == 0 or self.iteration == self.plan.iterations):
                self._print(time.time() - started, {key: value / seen for key, value in totals.items()})
                totals, seen = {}, 0
            if self.worker.rank == 0 and self.iteration % self.checkpoint_every == 0:
                self._save()
                if report:
                    report(self.iteration)
        if self.worker.rank == 0:
            self.checkpoint.unlink(missing_ok=True)

    def _print(self, seconds: float, means: Mapping[str, float]) -> None:
        shown = " ".join(f"{key} {value:.4f}" for key, value in means.items())
        place = f"{self.iteration}/{self.plan.iterations}"
        print(f"{self.name} {place} {seconds:.0f}s {shown}", flush=True)

    def _iterate(self, loss_function: LossFunction) -> dict[str, Tensor]:
        seed = (self.plan.seed * 1_000_003 + self.iteration) * 64 + self.worker.rank
        generator = torch.Generator().manual_seed(seed)
        loss, shown = loss_function(generator, self.plan.batch // self.worker.count)
        loss.backward()
        self.worker.average_gradients(self.parameters)
        factor = self.plan.step_size(self.iteration)
        for group in self.adam.param_groups:
            group["lr"] = self.plan.adam_lr * factor
        self.adam.step()
        self.muon.step(self.plan.muon_lr * factor)
        for parameter in self.parameters:
            parameter.grad = None
        self.iteration += 1
        self._follow()
        return {"loss": loss.detach(), **shown}

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.plan.ema, (1 + self.iteration) / (10 + self.iteration)) if self.plan.ema else 0.0
        for key, module in self.modules.items():
            torch._foreach_lerp_(list(self.average[key].parameters()), list(module.parameters()), 1 - decay)

    def _save(self) -> None:
        state = {
            "iteration": self.iteration,
            "modules": {key: module.state_dict() for key, module in self.modules.items()},
            "average": {key: module.state_dict() for key, module in self.average.items()},
            "adam": self.adam.state_dict(),
            "momentum": self.muon.momentum,
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.iteration = state["iteration"]
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
            self.average[key].load_state_dict(state["average"][key])
        self.adam.load_state_dict(state["adam"])
        self.muon.momentum = state["momentum"]
        if self.worker.rank == 0:
            print(f"{self.name}: resumed at iteration {self.iteration}", flush=True)
