#!/usr/bin/env bash
# Writes a software bill of materials (CycloneDX, JSON) of what is installed in .venv.
#
#     scripts/sbom.sh [FILE]    (default: sbom.json)
set -euo pipefail

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)
file=${1:-sbom.json}
tool=$(mktemp -d)
trap 'rm -rf -- "$tool"' EXIT

"$root/.venv/bin/python" -I -m venv "$tool"
"$tool/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$root/locks/sbom.txt"
"$tool/bin/cyclonedx-py" environment --output-reproducible --output-format JSON --output-file "$file" "$root/.venv"
