#!/usr/bin/env bash
# The dependency policy (deny.toml): licences, duplicates, sources; with --advisories known vulnerabilities too.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo-deny >/dev/null; then
    echo "deny: NOT CHECKED: cargo-deny is not installed (cargo install cargo-deny --locked; compiles for minutes)"
    # Asked for by name it has to run; as a part of `make test` it may be absent.
    [ "${1:-}" != --advisories ]
    exit
fi

cargo deny --locked check --hide-inclusion-graph bans licenses sources
[ "${1:-}" = --advisories ] || exit 0
if timeout 120 cargo deny --locked fetch db; then
    cargo deny --locked check --disable-fetch advisories
else
    echo "deny: advisories NOT CHECKED: their database cannot be reached"
fi
