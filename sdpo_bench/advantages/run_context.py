"""What all stages of one training share."""

from dataclasses import dataclass

from sdpo_bench.api import Method
from sdpo_bench.ledger import Ledger
from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.schedule import Schedule
from sdpo_bench.settings import Runtime
from sdpo_bench.system.distributed import Processes
from sdpo_bench.system.memory_retry import MicroBatch


@dataclass
class RunContext:
    """Parts that the trainer, the learning signal and the updater all use.

    Attributes:
        schedule: denoising steps of the present epoch; the trainer changes it where a window of random steps moves.
        ledger: the training bill.
        processes: train this run together; each does its own groups, the main one writes.
        runtime: settings that change no number; the micro-batch in use is ``micro_batch``.
        micro_batch: halved when memory runs out.
    """

    policy: Policy
    schedule: Schedule
    method: Method
    ledger: Ledger
    processes: Processes
    runtime: Runtime
    micro_batch: MicroBatch
