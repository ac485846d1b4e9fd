#!/usr/bin/env bash
# Runs each fuzz target, or those named, for TIME seconds: fuzz.sh [TARGET…]. Stops at the first finding, whose input is then
# in fuzz/artifacts/. New inputs are kept in target/fuzz; those committed are in fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked
# Sanitizers are a nightly's; a stable compiler can be told that it is one.
nightly=
if cargo +nightly --version >/dev/null 2>&1; then nightly=+nightly; else export RUSTC_BOOTSTRAP=1; fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/fuzz/build}

targets=("$@")
[ ${#targets[@]} -gt 0 ] || for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
for target in "${targets[@]}"; do
    mkdir -p "target/fuzz/corpus/$target"
    echo "fuzz: $target, ${TIME:-60} s"
    cargo $nightly fuzz run "$target" "target/fuzz/corpus/$target" "fuzz/corpus/$target" -- \
        -max_total_time="${TIME:-60}" -timeout=30 -rss_limit_mb=2048 -print_final_stats=1 -print_funcs=0 -verbosity=0
    # What all inputs that are there reach, without looking for more.
    cargo $nightly fuzz run "$target" "target/fuzz/corpus/$target" "fuzz/corpus/$target" -- -runs=0 2>&1 |
        sed -n 's/^#[0-9]*[[:space:]]*DONE *\(cov: [0-9]*\) .*/fuzz: '"$target"', \1 edges/p'
done
