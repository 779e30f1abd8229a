#!/usr/bin/env bash
# Types and imports of the wheel as users get it: installed apart, checked from outside the checkout.
#   check_wheel.sh BIN WHEEL
set -euo pipefail
bin=$1 wheel=$2 here=$(cd "$(dirname "$0")" && pwd)
apart=$(mktemp -d)
trap 'rm -rf "$apart"' EXIT
# The wheel alone; its dependencies come from the environment that built it.
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$apart/wheel" "$wheel"
cd "$apart"
PYTHONPATH="$apart/wheel" "$bin/python" - <<PY
import pathlib, sys
import fsgen_router
import fsgen_router.adapters.scripted
import fsgen_router.policies
where = pathlib.Path(fsgen_router.__file__)
assert where.is_relative_to("$apart/wheel"), where
loaded = {name for name in ("torch", "transformers", "llama_cpp") if name in sys.modules}
assert not loaded, f"importing fsgen_router loaded {loaded}"
PY
cat >mypy.ini <<INI
[mypy]
mypy_path = $apart/wheel
strict = True
warn_unreachable = True
[mypy-llama_cpp.*,accelerate.*,gguf.*,tokenizers.*,torch.*,transformers.*,matplotlib.*,scipy.*,sklearn.*,psutil.*,huggingface_hub.*]
ignore_missing_imports = True
follow_imports = skip
INI
"$bin/python" -m mypy --config-file mypy.ini -p fsgen_router
cp "$here/typed_program.py" .
"$bin/python" -m mypy --config-file mypy.ini typed_program.py
