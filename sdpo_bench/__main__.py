"""``python -m sdpo_bench`` is the ``sdpo-bench`` command (needed by launchers such as ``accelerate launch -m``)."""

from sdpo_bench.entry import main

if __name__ == "__main__":
    main()
