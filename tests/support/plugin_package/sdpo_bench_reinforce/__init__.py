"""A third party's plugins for sdpo-bench."""
