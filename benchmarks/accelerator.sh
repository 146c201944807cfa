#!/usr/bin/env bash
# What a machine with an accelerator has to say, in about ten minutes: does it give the golden runs, how well does GeN
# train on it, and what does a step cost? Runs go to build/accelerator. It needs the environment that the README's
# second command makes, with jax for the accelerator in it. With --tiny: the script on any machine.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} results=build/accelerator
"$python" -c "import jax; print(jax.devices())"
mkdir -p "$results"
cp benchmarks/results/{rules.json,measurements.jsonl.gz} "$results"
"$python" -m benchmarks fetch
[ "${1:-}" = --tiny ] || "$python" -m benchmarks vouch --again --results "$results" || echo "The golden runs differ here."
"$python" -m benchmarks run --workloads gpt_moby --results "$results" "$@" \
  --methods gen gen_horizon baseline:learning_rate=0.0316228,schedule=warmup_cosine
"$python" - "$@" <<'END'
import sys

from benchmarks.questions import overhead
from benchmarks.workloads import get

print("Time of a step over that of the base optimizer, with a probe at every 16th:")
for name in ("gpt_moby", "gpt_sotu", "vit_fashion"):
    row = overhead.measure(get(name, tiny="--tiny" in sys.argv), every=16, turns=7)
    print(name, {probe: round(found["ratio"], 3) for probe, found in row["probes"].items()})
END
