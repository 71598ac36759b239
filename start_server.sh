#!/usr/bin/env bash
# Sets up what is missing and starts the server. Every flag goes to openai_api_server.py.
set -euo pipefail

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
# shellcheck source=scripts/setup_env.sh
source "$root/scripts/setup_env.sh"

usage() {
    cat <<'TEXT'
Usage: ./start_server.sh [flags of the server]

Makes .venv, installs what this machine needs (with or without an NVIDIA GPU), and starts the server.
The first run takes some minutes; later ones start at once.

Environment:
  PYTHON=/path/to/python3.12   the Python to set up with (3.11 to 3.14; default: python3)
  SETUP_KIND=cpu|gpu           what to set up for (default: gpu if there is an NVIDIA GPU)
  SETUP_SKIP_CHECKS=1          don't stop for too little disk or memory

The list of the server's flags comes with the installation: run ./start_server.sh once, then
./start_server.sh --help shows it. OPENAI_API_GUIDE.md has the same list.
TEXT
}

# Nobody who asks for help wants to wait for an installation.
if wants_help "$@" && ! { detect_kind && is_ready; }; then
    usage
    exit 0
fi

setup_runtime
# The caller's folder stays current, so that relative paths in the flags mean what they say.
exec "$venv/bin/python" "$root/openai_api_server.py" "$@"
