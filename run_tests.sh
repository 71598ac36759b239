#!/usr/bin/env bash
# Sets up what is missing and runs the tests. Every argument goes to pytest: ./run_tests.sh tests/setup -k stamp
# With --fast, only the tests that need neither vLLM nor a model run, in about two minutes.
set -euo pipefail

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
# shellcheck source=scripts/setup_env.sh
source "$root/scripts/setup_env.sh"

usage() {
    cat <<'TEXT'
Usage: ./run_tests.sh [--fast] [pytest's arguments]

Without --fast: sets up .venv with the server and the test tools (minutes, once) and runs every test.

With --fast: runs the tests that need no vLLM, no model and no browser, in about two minutes. It uses .venv if that is
complete, else .venv-fast, which is set up once with the packages of requirements_fast.txt. While these tests run,
importing vLLM is an error.

The environment variables of the set-up are described by ./start_server.sh --help.
TEXT
}

fast=
arguments=()
for argument in "$@"; do
    if [[ $argument == --fast ]]; then fast=1; else arguments+=("$argument"); fi
done

if wants_help "$@" && ! { detect_kind && is_ready && is_dev_ready && [[ -z $fast ]]; }; then
    usage
    exit 0
fi

if [[ -z $fast ]]; then
    setup_runtime
    setup_dev
    cd -- "$root"
    exec "$venv/bin/python" -m pytest "$@"
fi

setup_fast
cd -- "$root"
# Tests that the caller names are run instead of the whole fast part.
named=
for argument in "${arguments[@]+"${arguments[@]}"}"; do
    if [[ $argument != -* && -e ${argument%%::*} ]]; then named=1; fi
done
if [[ -z $named ]]; then
    arguments+=(-n auto tests/ocr_server tests/ocr_client tests/deepseek_ocr tests/setup tests/test_*.py)
fi
# tests/conftest.py reads the variable and refuses vLLM.
export OCR_TESTS_FAST=1
exec "$venv/bin/python" -m pytest -m "not live and not engine and not browser and not slow" "${arguments[@]}"
