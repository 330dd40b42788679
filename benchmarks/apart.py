"""Work in a process of its own, so that the peak memory of one measurement does not hide in that of another."""

import multiprocessing


def apart(function, *arguments) -> None:
    """Run in a fresh process and wait for it.

    Raises:
        SystemExit: it failed.
    """
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed with exit code {process.exitcode}")
