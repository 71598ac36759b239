#!/usr/bin/env bash
# Sets up what is missing and starts the server. Every flag goes to openai_api_server.py.
set -euo pipefail

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
# shellcheck source=scripts/setup_env.sh
source "$root/scripts/setup_env.sh"

usage() {
    cat <<'TEXT'
Usage: ./start_server.sh [flags of the server]

Creates .venv, installs what this machine needs (with or without an NVIDIA GPU), and starts the server.
The first run takes a few minutes; later runs start immediately.

Environment:
  PYTHON=/path/to/python3.12   Python to create .venv with (3.11 to 3.14; default: python3)
  SETUP_KIND=cpu|gpu           what to install for (default: gpu if there is an NVIDIA GPU)
  SETUP_SKIP_CHECKS=1          continue even if disk space or memory is low

After the installation, ./start_server.sh --help lists the server's flags. OPENAI_API_GUIDE.md has the same list.
TEXT
}

# Help must not wait for an installation.
if wants_help "$@" && ! { detect_kind && is_ready; }; then
    usage
    exit 0
fi

setup_runtime
# The current folder does not change, so that relative paths in flags work.
exec "$venv/bin/python" "$root/openai_api_server.py" "$@"
