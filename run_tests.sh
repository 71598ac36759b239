#!/usr/bin/env bash
# Sets up what is missing and runs the tests. Every argument goes to pytest: ./run_tests.sh tests/setup -k stamp
set -euo pipefail

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
# shellcheck source=scripts/setup_env.sh
source "$root/scripts/setup_env.sh"

if wants_help "$@" && ! { detect_kind && is_ready && is_dev_ready; }; then
    say "Usage: ./run_tests.sh [pytest's arguments]"
    say "Sets up .venv with the server and the test tools (minutes, once) and runs pytest. Flags: see ./start_server.sh --help."
    exit 0
fi

setup_runtime
setup_dev
cd -- "$root"
exec "$venv/bin/python" -m pytest "$@"
