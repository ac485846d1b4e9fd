#!/usr/bin/env bash
# Plants bugs, one at a time, in a copy of the tree, and shows that the simulation catches each.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
export CARGO_TARGET_DIR="$PWD/target/planted" RUST_BACKTRACE=0
missed=0

# plant NAME FILE OLD NEW: OLD has to stand in FILE, to the letter.
plant() {
    local name=$1 file=$2
    rm -rf "${copy:?}"/*
    git ls-files -z -- Cargo.toml Cargo.lock src tests config benches | tar --null -T - -c | tar -x -C "$copy"
    OLD=$3 NEW=$4 perl -0pi -e 's/\Q$ENV{OLD}\E/$ENV{NEW}/g or die "planted.sh: nothing to replace\n"' "$copy/$file" ||
        { printf 'planted: %-32s is out of date: %s\n' "$name" "$file"; exit 1; }
    cargo test --quiet --locked --manifest-path "$copy/Cargo.toml" --test it --no-run 2>/dev/null ||
        { printf 'planted: %-32s does not compile\n' "$name"; exit 1; }
    if cargo test --quiet --locked --manifest-path "$copy/Cargo.toml" --test it simulation:: >"$copy/log" 2>&1; then
        printf 'planted: %-32s MISSED\n' "$name"
        missed=1
    else
        printf 'planted: %-32s caught (%s)\n' "$name" "$(grep -o 'seed [0-9]* breaks a law' "$copy/log" | head -1)"
    fi
}

plant "a scope without its group" src/caller.rs \
    'Some(group) => hash.field(group.as_bytes())' 'Some(_) => hash.absent()'
plant "a scope without its headers" src/caller.rs \
    'hash.field(value.as_bytes());' ''
plant "a deadline that never comes" src/cache/freshness.rs \
    'now.since(self.sent))' '0)'
plant "a clock that a suspend stops" src/clock.rs \
    'monotonic.max(wall)' 'monotonic'
plant "a floor that is not kept" src/cache/freshness.rs \
    'life.saturating_sub(millis(config.min_remaining))' 'life'
plant "a waiter that is not woken" src/fetch/calls.rs \
    'passenger.flight.bell.notify_waiters();' ''
plant "flights that nobody joins" src/fetch.rs \
    'if let Some(flight) = state.flights.get(&wanted.key)' 'if let Some(flight) = state.flights.get(&wanted.key).filter(|_| false)'
plant "a link that is not kept" src/cache.rs \
    'self.entries.insert(key, kept);' 'let _ = (key, kept);'
plant "ids counted twice" src/metrics.rs \
    'counter.inc_by(u64::from(count));' 'counter.inc_by(2 * u64::from(count));'
plant "an answer in another order" src/access_urls/respond.rs \
    'slots.slots.iter().filter_map(|slot| slot.had' 'slots.slots.iter().rev().filter_map(|slot| slot.had'
exit "$missed"
