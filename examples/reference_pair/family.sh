#!/bin/sh
# Make the reference family on a machine with a GPU, within SECONDS of training (five sizes, three seeds; fewer seeds
# where the time does not do for half of the tokens), and its tuned members. From the repository's root:
#
#     sh examples/reference_pair/family.sh ROWS OUT [SECONDS]
#
# ROWS (.npy or .npy.xz) is made where it does not exist. OUT/trained and OUT/tuned get at most six files, each under
# 16 MiB. It needs torch, transformers, safetensors, tokenizers and tqdm, not this package installed.
set -eu
rows=$1 out=$2 seconds=${3:-240}
here=$(dirname "$0")
work=${TMPDIR:-/tmp}/family-work
# Streams share eight queues to the device unless told otherwise, and each member has a stream.
export CUDA_DEVICE_MAX_CONNECTIONS=32 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

[ -e "$rows" ] || python3 "$here/rows.py" "$rows" --tokens 56e6 --workers "$(nproc)"
python3 "$here/family.py" "$rows" --out "$work/trained" --pack "$out/trained" --seeds 1 2 3 \
    --tokens 104e6 --stop-after "$seconds" --least 52e6 --checkpoint-every 100
python3 "$here/rows.py" "$work/ages_apart.npy" --tokens 4e6 --family ages_apart --workers "$(nproc)"
python3 "$here/family.py" "$work/ages_apart.npy" --out "$work/tuned" --pack "$out/tuned" --seeds 1 2 3 \
    --sizes 43k --start "$out/trained" --tokens 4e6 --lr 0.005
