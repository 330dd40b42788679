"""Kill a run at very many random moments and compare what is left with a run that never was killed.

    python benchmarks/kill_resume.py --runs 50

The tests do this with a few moments; this is the long version. Each run of the tiny pipeline is killed with SIGKILL at
up to six random moments (also while it resumes, in the middle of writes and of denoiser calls) and then finished.
Prints one line a run and ends with exit code 1 at the first run whose results differ by a byte.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
TESTS = Path(__file__).parent.parent / "tests" / "support"
sys.path.insert(0, str(TESTS))


def main() -> None:
    import torch

    from killing import command_of, finish, results, run_until
    from sdpo_bench.cli import entry

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        command = command_of(out, TESTS / "fixtures" / "official" / "tiny_pipe")
        try:
            entry.main(command(out / "whole", 1))
        except SystemExit:
            expected = results(out / "whole")
        run_until(0, command(out / "again", 1), out / "moments")
        longest = len((out / "moments").read_text().splitlines())
        draw = random.Random(options.seed)
        for number in range(options.runs):
            kills = [draw.randrange(1, longest) for _ in range(draw.randint(1, 6))]
            place = out / f"run{number}"
            where = finish(command, place, draw.randint(1, 3), kills, out / "moments")
            same = results(place) == expected
            print(f"run {number}: {'same bytes' if same else 'DIFFERS'} after kills at {where}", flush=True)
            if not same:
                sys.exit(1)


if __name__ == "__main__":
    main()
