#!/usr/bin/env bash
# A release build optimized with a profile of itself: target/pgo/release/sidelink. Its profile is that of `make bench-peers`'s load,
# over HTTP/1, and over HTTP/2 with TLS. Needs two cores, and llvm-profdata of rustc's LLVM: rustup component add llvm-tools, or the
# package llvm-N of apt.llvm.org.
set -euo pipefail
cd "$(dirname "$0")/.."

llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
host=$(rustc -vV | sed -n 's/^host: //p')
PATH="$(rustc --print sysroot)/lib/rustlib/$host/bin:/usr/lib/llvm-$llvm/bin:$PATH"
profdata=$(command -v "llvm-profdata-$llvm" llvm-profdata | head -1 || true)
if [[ $("$profdata" --version 2>/dev/null) != *"LLVM version $llvm."* ]]; then
    echo "pgo: llvm-profdata of LLVM $llvm is missing: rustup component add llvm-tools" >&2
    exit 1
fi

profiles=$PWD/target/pgo-profiles
rm -rf "$profiles"
train() {
    env "$@" RUSTFLAGS="-Cprofile-generate=$profiles" CARGO_TARGET_DIR=target/pgo-training PYTHONDONTWRITEBYTECODE=1 \
        PEERS_CONTENDERS=sidelink PEERS_ROUNDS=1 PEERS_SECONDS=2 PEERS_PATIENCE=0 PEERS_AMPLIFICATION=0 benches/peers/run.py >/dev/null
}
train PEERS_H2= PEERS_TLS=
train PEERS_H2=1 PEERS_TLS=1
"$profdata" merge -o target/pgo.profdata "$profiles"/*.profraw
RUSTFLAGS="-Cprofile-use=$PWD/target/pgo.profdata" CARGO_TARGET_DIR=target/pgo cargo build --release --locked --bin sidelink
echo "target/pgo/release/sidelink"
