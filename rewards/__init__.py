"""Built-in reward plugins, one file each; found by scanning this folder (installed as ``sdpo_bench.rewards``)."""
