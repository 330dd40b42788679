"""Studies: one module and one class each, found by name (``sdpo-bench list studies``)."""
