#!/usr/bin/env bash
# Installs what `make test` needs and this machine lacks. Quick, and silent, where all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
requirements=tests/sdk/requirements.txt

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

# rustls' cryptography has parts in C and assembly.
command -v cc >/dev/null || apt_install gcc libc6-dev

# rustfmt and clippy come with most toolchains, not with the minimal one.
for component in rustfmt clippy; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
done

# The official SDK, in a virtual environment of its own: tests/it/sdk.rs drives it.
sdk_is_there() { "$venv/bin/python" -c 'import huaweicloudsdkosm.v2' >/dev/null 2>&1; }
if ! sdk_is_there; then
    command -v python3 >/dev/null || apt_install python3 python3-venv
    # On Debian the module venv is there without what it needs.
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || apt_install python3-venv
    say "installing the SDK into $venv"
    python3 -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$requirements" </dev/null ||
        # The pinned release is gone from the index: the nearest one will do.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
            'huaweicloudsdkosm==3.1.*' </dev/null
    sdk_is_there || { say "the SDK is installed but does not import" >&2; exit 1; }
fi
