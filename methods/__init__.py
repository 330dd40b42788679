"""Built-in method plugins, one file each; found by scanning this folder (installed as ``sdpo_bench.methods``)."""
