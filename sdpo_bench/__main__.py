"""Where the ``sdpo-bench`` command begins, and ``python -m sdpo_bench`` (``accelerate launch -m`` and its kin)."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line, as ``entry.main``; Ctrl-C is no traceback while Python is still reading modules either."""
    try:
        from sdpo_bench.cli.entry import main as run
    except KeyboardInterrupt:
        print("\nInterrupted before anything had begun.", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
