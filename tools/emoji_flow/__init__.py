"""Training recipe of ``emoji-flow``, the embedded few-step flow-matching model (see README.md)."""
