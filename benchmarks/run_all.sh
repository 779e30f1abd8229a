#!/usr/bin/env bash
# Every figure of the README, one script after the other.   run_all.sh BIN
set -euo pipefail
cd "$(dirname "$0")"
bin=$1
for script in import_time reference_pair lossless overhead batching assisted soak routed_decode prefix_cost read_ahead policy_cost method_step recommend best_of_k remote_money agents; do
	echo "== $script" >&2
	"$bin/python" "$script.py"
done
"$bin/python" turns.py --simulate
# With a real pair's files, and with another environment that has the version before (turns.py --before).
if [ -n "${FSGEN_REAL_MODELS:-}" ]; then "$bin/python" turns.py --models "$FSGEN_REAL_MODELS"; fi
"$bin/python" drafts.py
"$bin/python" seams.py ${FSGEN_REAL_MODELS:+--models "$FSGEN_REAL_MODELS"}
"$bin/python" serve.py ${FSGEN_REAL_MODELS:+--models "$FSGEN_REAL_MODELS"}
"$bin/python" constraints.py ${FSGEN_REAL_MODELS:+--model "$FSGEN_REAL_MODELS/qwen-0.5b.gguf"}
"$bin/python" prompt_check.py
"$bin/python" calibration.py --work "${TMPDIR:-/tmp}/fsgen-calibration"
"$bin/python" readme.py
