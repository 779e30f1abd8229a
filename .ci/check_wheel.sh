#!/usr/bin/env bash
# Types and imports of the wheel as users get it: installed apart, checked from outside the checkout.
#   check_wheel.sh BIN WHEEL
set -euo pipefail
bin=$1 wheel=$2
apart=$(mktemp -d)
trap 'rm -rf "$apart"' EXIT
"$bin/python" -m venv --system-site-packages "$apart/venv"
# The dependencies come from the environment that built the wheel; the wheel itself from itself.
site=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$apart/wheel" "$wheel"
cd "$apart"
env MYPYPATH="$apart/wheel" PYTHONPATH="$apart/wheel" "$bin/python" - <<PY
import pathlib, sys
import fsgen_router
import fsgen_router.adapters.scripted
import fsgen_router.policies
where = pathlib.Path(fsgen_router.__file__)
assert where.is_relative_to("$apart/wheel"), where
loaded = {name for name in ("torch", "transformers", "llama_cpp") if name in sys.modules}
assert not loaded, f"importing fsgen_router loaded {loaded}"
PY
"$bin/python" -m mypy --strict --python-executable "$bin/python" --config-file /dev/stdin -p fsgen_router <<INI
[mypy]
mypy_path = $apart/wheel
warn_unreachable = True
[mypy-llama_cpp.*,matplotlib.*,scipy.*,psutil.*,gguf.*,huggingface_hub.*]
ignore_missing_imports = True
follow_imports = skip
INI
