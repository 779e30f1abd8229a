#!/usr/bin/env bash
# The tests that need no model (tests/unit), on the newest other Python that this machine has: pyproject.toml claims several.
set -euo pipefail
cd "$(dirname "$0")/.."
found=
versions=${PYENV_ROOT:-$HOME/.pyenv}/versions
for python in python3.13 "$versions"/3.13.*/bin/python python3.12 "$versions"/3.12.*/bin/python; do
    if "$python" -c '' 2>/dev/null; then found=$python; break; fi
done
if [ -z "$found" ]; then
    echo "This machine has no Python 3.12 or 3.13: the claim to support them was not tested in this run."
    exit 0
fi
apart=$(mktemp -d)
trap 'rm -rf "$apart" build/lib' EXIT
"$found" -m venv "$apart"
"$apart/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt \
    '.[openai,serve,eval,constrain]' psutil pytest pytest-asyncio pytest-timeout pytest-xdist hypothesis
"$apart/bin/python" --version
# Not through "python -m pytest", which would take the checkout for the package.
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$apart/bin/pytest" -p no:cacheprovider -n 2 --dist worksteal tests/unit
