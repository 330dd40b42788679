"""Example plugins for sdpo-bench; each is a module of its own and nothing happens on import."""
