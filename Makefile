# `make test` is all that a change has to pass; CI runs it too.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test
.NOTPARALLEL:
.PHONY: test lint fmt clippy doc docs deny demo stampede simulate soak pressure fuzz planted bench pgo bench-peers bench-lfs bench-links status-page tools clean

## Everything: tools, format, lints, tests, what deploy/ holds, documentation, dependency policy (where cargo-deny is installed).
test: tools lint
	cargo test --locked
	scripts/deploy.sh
	$(MAKE) --no-print-directory doc
	scripts/deny.sh

lint: fmt clippy
	scripts/planted.sh --check

fmt:
	cargo fmt --check

clippy:
	cargo clippy --all-targets --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked

## Writes config/sidelink.toml, docs/CONFIGURATION.md, the tables of docs/ERRORS.md and docs/LOGGING.md, and type, labels, buckets and HELP in
## docs/METRICS.md from the program, and the PrometheusRule from deploy/prometheus; `make test` fails where they are out of date.
docs:
	SIDELINK_DOCS=write cargo test --locked --test it -- documents::generated metrics::the_page rules::the_prometheus_rule

## The dependency policy with known vulnerabilities; needs cargo-deny.
deny:
	scripts/deny.sh --advisories

demo:
	cargo run --release --locked -- demo

## 64 different cold batches over 40 ids at once: prints what the endpoint was asked.
stampede:
	cargo test --locked --test it stampede -- --nocapture

## The simulation over many more schedules than `make test` has time for: make simulate SEEDS=10000.
simulate:
	SIDELINK_SEEDS=$(or $(SEEDS),10000) CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_TARGET_DIR=target/simulate \
		cargo test --locked --test it simulation:: -- --nocapture

## A real sidelink under mixed traffic and faults, its memory, files and tasks watched: an hour, or make soak TIME=20m.
soak:
	cargo build --release --locked --bin sidelink --example soak
	target/release/examples/soak $(or $(TIME),1h)

## A real sidelink with more callers, connections and links than it has room for: prints its memory after each.
pressure:
	cargo build --release --locked --bin sidelink --example pressure
	target/release/examples/pressure

## Each fuzz target for a minute, or make fuzz TIME=600: parsers, connections, and the laws as a whole. Needs cargo-fuzz.
fuzz:
	scripts/fuzz.sh

## Plants bugs and shows that the simulation, or the test of isolation over a fleet, catches each: half an hour.
planted:
	scripts/planted.sh

## The hit path and its parts (criterion), and instructions for a batch against the record (valgrind).
bench:
	command -v valgrind >/dev/null || { apt-get -qq update && apt-get -qq install -y valgrind >/dev/null; }
	cargo bench --locked --bench hit_path
	cargo bench --locked --bench instructions
	cargo bench --locked --bench scaling

## sidelink compared with bare hyper, nginx and Varnish, each on one core, with batches that repeat and batches that overlap: prints
## tables, draws docs/bench-peers.svg. Installs what is absent. Several runs: make bench-peers RUNS=3.
## Over HTTP/2 or TLS 1.3, with bare hyper and nginx only: make bench-peers H2=1, TLS=1, or H2=1 TLS=1. With sidelink and bare hyper
## as `make pgo` builds them: make bench-peers PGO=1.
bench-peers: $(if $(PGO),pgo)
	command -v python3 >/dev/null || { apt-get -qq update && apt-get -qq install -y python3 >/dev/null; }
	$(if $(PGO),RUSTFLAGS="-Cprofile-use=$$PWD/target/pgo.profdata" CARGO_TARGET_DIR=target/pgo) \
		PYTHONDONTWRITEBYTECODE=1 PEERS_RUNS=$(or $(RUNS),1) PEERS_H2=$(H2) PEERS_TLS=$(TLS) benches/peers/run.py

## git-lfs's batches of 100 objects in memory, against bare hyper that reads the same bodies.
bench-lfs:
	benches/peers/lfs.py

## A release build that is optimized with a profile of itself, target/pgo/release/sidelink: a quarter faster (docs/BENCHMARKS.md).
pgo: target/pgo/release/sidelink

target/pgo/release/sidelink: Cargo.lock $(shell find src -name '*.rs')
	scripts/pgo.sh

## What 400,000 links cost a running sidelink: memory at several capacities, and its pace.
bench-links:
	PYTHONDONTWRITEBYTECODE=1 benches/peers/links.py

## Draws docs/status-page.png: the status page after some minutes of mixed traffic. MINUTES=10 fills its charts.
status-page:
	dir=$$(mktemp -d) && SIDELINK_PICTURES=$$dir SIDELINK_PICTURES_MINUTES=$(or $(MINUTES),10) \
		cargo test --locked --test it status_page::pictures -- --ignored && cp $$dir/load-1280-light.png docs/status-page.png

## Installs what is absent: the official SDK in .venv, and system packages.
tools:
	scripts/tools.sh

clean:
	cargo clean
	rm -rf .venv
