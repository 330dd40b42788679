"""What every job of a sweep imports, loaded once by the process that the jobs are forked from.

Importing it starts no thread and reads no plugin: those that change between two jobs are read by each job itself.
"""

import gc

import sdpo_bench.running.live
import sdpo_bench.running.run_one  # noqa: F401
from sdpo_bench.models.base_model import quiet_libraries
from sdpo_bench.models.pipeline_loading import import_libraries
from sdpo_bench.system.library_imports import collector_paused

with collector_paused():
    quiet_libraries()
    import_libraries()
gc.freeze()  # collections of the jobs would copy the pages that all of them share
