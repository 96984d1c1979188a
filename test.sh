#!/usr/bin/env bash
# All tests but the heavy ones (pytest.ini). More words go to pytest:  bash test.sh -m "not slow"
# It makes .venv and installs requirements.txt there first. PYTHON is the interpreter that .venv is made with.
set -euo pipefail
cd "$(dirname "$0")"
base=${PYTHON:-python3}
if ! cmp -s requirements.txt .venv/requirements.txt; then
    about='import sys; print(sys.version.split()[0]); sys.exit(sys.version_info < (3, 11))'
    if ! found=$("$base" -c "$about" 2>/dev/null); then
        echo "test.sh: expected Python 3.11 or later as $base, found ${found:-none}; call PYTHON=python3.12 bash test.sh" >&2
        exit 2
    fi
    echo "installing requirements.txt into .venv"
    "$base" -m venv --clear .venv
    .venv/bin/python -m pip install -q -r requirements.txt
    cp requirements.txt .venv/
fi
exec .venv/bin/python -m pytest "$@"
