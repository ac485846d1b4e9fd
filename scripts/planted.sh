#!/usr/bin/env bash
# Plants bugs, one at a time, in a copy of the tree, and shows that the simulation, or the test of isolation over a fleet,
# catches each: planted.sh [PATTERN], those whose name has it. planted.sh --check sees only whether each can be planted.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
export CARGO_TARGET_DIR="$PWD/target/planted" RUST_BACKTRACE=0
missed=0
only=${1:-}

# plant NAME FILE OLD NEW [TEST [TARGET]]: OLD has to stand in FILE, to the letter. TARGET is --lib for a test beside the code.
plant() {
    local name=$1 file=$2 test=${5:-simulation::} target=${6:---test it}
    if [ "$only" = --check ]; then
        OLD=$3 perl -0ne 'exit(index($_, $ENV{OLD}) < 0)' "$file" || { echo "planted: $name is out of date: $file"; missed=1; }
        return
    fi
    [[ $name == *"$only"* ]] || return 0
    rm -rf "${copy:?}"/*
    git ls-files -z | tar --null -T - -c | tar -x -C "$copy"
    OLD=$3 NEW=$4 perl -0pi -e 's/\Q$ENV{OLD}\E/$ENV{NEW}/g or die "planted.sh: nothing to replace\n"' "$copy/$file" ||
        { printf 'planted: %-32s is out of date: %s\n' "$name" "$file"; exit 1; }
    cargo test --quiet --locked --manifest-path "$copy/Cargo.toml" $target --no-run 2>/dev/null ||
        { printf 'planted: %-32s does not compile\n' "$name"; exit 1; }
    if cargo test --quiet --locked --manifest-path "$copy/Cargo.toml" $target "$test" >"$copy/log" 2>&1; then
        printf 'planted: %-32s MISSED\n' "$name"
        missed=1
    else
        printf 'planted: %-32s caught (%s)\n' "$name" "$(grep -o 'seed [0-9]* breaks [a-z]* law' "$copy/log" | head -1)"
    fi
}

plant "a scope without its group" src/api/id.rs \
    'once(self.name().map(str::as_bytes))' 'once(self.name().and(None::<&[u8]>))'
plant "a scope without its headers" src/auth/scope.rs \
    'take(Some(value.as_bytes()));' 'take(Some(&value.as_bytes()[..0]));'
plant "a deadline that never comes" src/cache/freshness.rs \
    'left(self.fresh, now.since(self.sent))' 'left(self.fresh, now.since(self.sent) / 1000)'
plant "a clock that a suspend stops" src/clock.rs \
    'monotonic.max(wall)' 'monotonic'
plant "a floor that is not kept" src/cache/freshness.rs \
    'life.saturating_sub(millis(config.min_remaining))' 'life'
plant "a waiter that is not woken" src/fetch/flights.rs \
    'let _ = self.result.set(result);' ''
plant "flights that nobody joins" src/fetch.rs \
    'let flight = flights.by_key.get(&id.key);' 'let flight = flights.by_key.get(&id.key).filter(|_| false);'
plant "a link that is not kept" src/cache.rs \
    'table.insert(key, entry);' 'drop(entry);'
plant "ids counted twice" src/telemetry/metrics/api.rs \
    'counter.inc_by(u64::from(count));' 'counter.inc_by(2 * u64::from(count));'
plant "an answer in another order" src/batch/slots.rs \
    'self.slots.iter().filter_map(|slot| slot.entry.as_ref()' 'self.slots.iter().rev().filter_map(|slot| slot.entry.as_ref()'

# One user, many tokens.
plant "tokens whose roles do not count" src/identity/keystone.rs \
    '!LEFT_OUT.contains(&&**name)' '!LEFT_OUT.contains(&&**name) && name != ROLES'
plant "users that are all one" src/auth/scope.rs \
    'Scope(self.by_user.with([Some(&id.0[..])]))' 'Scope(self.by_user.with([Some(&id.0[..0])]))'
plant "a token known beyond its end" src/auth/user_cache.rs \
    'let until = expires.min(settled);' 'let until = { let _ = expires; settled };'
plant "a refused token that is active" src/auth/caller_state.rs \
    'state.is_refused.store(is_refused, Ordering::Release);' ''
plant "a refused token's user kept" src/auth/caller_state.rs \
    'state.cached_user.store(no_user.filter(|_| !is_refused).cloned());
        state.entries_version.store(self.new_entries_version(), Ordering::Release);' ''

# Whole answers.
plant "whole answers without their scope" src/batch.rs \
    'Written::new(scope,' 'Written::new({ static ANY: std::sync::OnceLock<Scope> = std::sync::OnceLock::new(); *ANY.get_or_init(|| scope) },'
plant "whole answers without a revision" src/cache/answers.rs \
    'self.revision == revision && ' ''
plant "a whole answer that lives as its first link" src/cache/answers.rs \
    'usable_until.min(deadlines.ageing_from(key.spread()))' 'if usable_until == Moment::NEVER { deadlines.ageing_from(key.spread()) } else { usable_until }'
plant "a purge that ends no whole answer" src/cache/purges.rs \
    'self.revision.fetch_add(1, Ordering::AcqRel);' ''
plant "a withdrawal that ends no whole answer" src/cache.rs \
    '        caller.owner().end_answers();
    }

    /// Removes entries' '    }

    /// Removes entries' repeated_batches::
plant "a refetch that ends no whole answer" src/fetch/flights.rs \
    'if pending.flight.refetches.load(Ordering::Relaxed) {' 'if false & pending.flight.refetches.load(Ordering::Relaxed) {' repeated_batches::

# The way to the endpoint.
way="endpoint_connections::"
plant "a lost connection that counts once a stream" src/upstream/evidence.rs \
    'find(|call| call.failure == failure)' 'find(|call| call.failure == failure && call.failure.is_none())' evidence:: --lib
plant "a probe on an old connection" src/upstream/retry.rs \
    'let probe = admission.is_probe();' 'let probe = false & admission.is_probe();' "$way"
plant "a joiner with the deadline of another batch" src/fetch.rs \
    'while self.upstream.leaves_fair_time(context.deadline) {' 'while false & self.upstream.leaves_fair_time(context.deadline) {' deadlines::
plant "one source that counts many times" src/upstream/evidence.rs \
    'sources.min(finding.counts.id_sets) > 1' 'failed.len() > 1'
plant "a refused token that is a sign of health" src/upstream/attempt.rs \
    '            _ => CallOutcome::Neutral,' '            _ => CallOutcome::Success,' "$way"

# Over a fleet, with a shared tier.
fleet="fleet::isolation::"
plant "a scope without its group, in a fleet" src/shared/sealing.rs \
    'for each in fields {
            field(*each' 'for each in fields.iter().skip(1) {
            field(*each' "$fleet"
plant "a tier's name without its scope" src/shared/sealing.rs \
    'field(*each, |bytes| names.update(bytes));' 'field(each.and(None), |bytes| names.update(bytes));' "$fleet"
plant "a tier's key without its caller" src/shared/sealing.rs \
    'first.iter().chain(fields)' 'first.iter().chain(&fields[..0])' "$fleet"
plant "a scope header that is forgotten" src/config/batch/presets/huawei-osm.toml \
    '"x-time-zone", "x-site"' '"x-time-zone", "x-sight"' "$fleet"
plant "a value that opens anywhere" src/shared/sealing.rs \
    'aad: name.as_bytes()' 'aad: &name.as_bytes()[..0]' "$fleet"
plant "a purge that is forgotten" src/cache/purges.rs \
    '*last = at.monotonic.max(*last);' 'let _ = last;' "$fleet"
plant "a purge that the fleet does not hear" src/shared/announcements.rs \
    'self.announce(self.secrets.iter().map(|fleet| (fleet, event(fleet))));' 'let _ = event;' "$fleet"
plant "a journal that nobody applies" src/shared/journal.rs \
    'is_some_and(|at| *at >= stamp.position)' 'is_some_and(|at| *at > u64::MAX - stamp.position)' "$fleet"
plant "a revocation that stays where it is" src/shared/announcements.rs \
    '        if was_accepted {' '        if false & was_accepted {' "$fleet"
plant "a 401 that drops nothing" src/auth/caller_state.rs \
    'state.entries_version.store(self.new_entries_version(), Ordering::Release);' '' "$fleet"
plant "a 403 that forgets nothing" src/fetch/refused_calls.rs \
    'if !self.cache.peek(id.key).is_some_and(is_newer) {' 'if false & self.cache.peek(id.key).is_some_and(is_newer) {' "$fleet"
plant "an acceptance that never ends" src/auth.rs \
    'self.accepted_left(identity, now).is_none()' 'self.accepted_left(identity, now).is_none() && !identity.caller_state.is_accepted()' "$fleet"
exit "$missed"
