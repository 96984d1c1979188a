#!/usr/bin/env bash
# All tests but the heavy ones (pytest.ini); further words go to pytest:  bash test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")"
if ! cmp -s requirements.txt .venv/requirements.txt; then
    echo "installing requirements.txt into .venv"
    python3 -m venv .venv
    .venv/bin/python -m pip install -q -r requirements.txt
    cp requirements.txt .venv/
fi
exec .venv/bin/python -m pytest "$@"
