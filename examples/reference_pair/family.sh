#!/bin/sh
# Train the reference family on one GPU within a time: sh examples/reference_pair/family.sh ROWS OUT [SECONDS]
# OUT gets at most five files, each under 16 MiB. Needs torch, transformers, safetensors and tqdm alone; with less
# than half of the tokens in sight it goes on with fewer seeds.
set -eu
rows=$1 out=$2 seconds=${3:-240}
# Streams share eight queues to the device unless told otherwise, and each member has a stream.
export CUDA_DEVICE_MAX_CONNECTIONS=32 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
mkdir -p "$out"
exec python3 "$(dirname "$0")/family.py" "$rows" --out "${TMPDIR:-/tmp}/family-run" --pack "$out" \
    --seeds 1 2 3 --tokens 104e6 --stop-after "$seconds" --least 52e6 --checkpoint-every 100
