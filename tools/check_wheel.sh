#!/usr/bin/env bash
# Build the wheel (through the sdist), install it in a clean environment, and use it outside of the checkout.
#
#     tools/check_wheel.sh [pip options for the installation]
#
# The first command that fails ends it with its exit code. Needs Python 3.11 or later and the package index.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
say() { echo "check_wheel: $*" >&2; }

say "build"
python3 -m venv "$work/builder"
"$work/builder/bin/pip" install --quiet build
"$work/builder/bin/python" -m build --outdir "$work/dist" "$root" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
wheel=("$work"/dist/sdpo_bench-*.whl)

say "install ${wheel[0]##*/}"
python3 -m venv "$work/venv"
export PATH="$work/venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
unset PYTHONPATH
# The same torch as the tests have: pip takes it from its cache.
pip install --quiet "$@" "torch==2.13.0" "${wheel[0]}[tensorboard]"

mkdir "$work/elsewhere"
cd "$work/elsewhere"
say "names"
version="$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")"
sdpo-bench --version | grep --fixed-strings "$version"
python -c "import sdpo_bench; assert '$root' not in sdpo_bench.__file__, sdpo_bench.__file__"
sdpo-bench list methods | grep --quiet sdpo
sdpo-bench list suites | grep --quiet paper-main

say "runs"
printf 'cat\ndog\n' >prompts.txt
cat >small.toml <<'END'
[budget]
images = 8

[schedule]
steps = 2

[sample]
images_per_epoch = 8
prompts = "prompts.txt"

[update]
minibatch = 2
accumulation = 1

[eval]
train = "prompts.txt"
unseen = ""
steps = [1]
images_per_prompt = 1
rewards = []
END
first="$(sdpo-bench run --config small.toml --device cpu --track tensorboard | tail -n 1)"
find . -name 'events.out.tfevents.*' | grep --quiet .
sdpo-bench run --config small.toml --device cpu --method ddpo >/dev/null
again="$(sdpo-bench run --config "$first/run.json" --device cpu | tail -n 1)"
[ "$first" = "$again" ] || { say "run.json gives another run: $first, $again"; exit 1; }

say "results"
sdpo-bench show "${first##*/}" >/dev/null
sdpo-bench compare sdpo ddpo >/dev/null
sdpo-bench report --format html --against paper >/dev/null
grep --quiet '</html>' results/report.html
python - <<'END'
import sdpo_bench as sb

results = sb.load_results("results")
methods = sorted(run.method for run in results.runs)
assert methods == ["ddpo", "sdpo"], methods
assert len(results.scores) == 6, results.scores  # two runs and the base model, two prompts
END

say "plugin"
sdpo-bench new method my-method
pip install --quiet --no-deps ./my-method
sdpo-bench doctor --plugin my-method
say "ok"
