# `make test` is all that a change has to pass; CI runs it too.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test
.NOTPARALLEL:
.PHONY: test lint fmt clippy doc deny demo tools clean

## Everything: tools, format, lints, tests, documentation, dependency policy (where cargo-deny is installed).
test: tools lint
	cargo test --locked
	$(MAKE) --no-print-directory doc
	scripts/deny.sh

lint: fmt clippy

fmt:
	cargo fmt --check

clippy:
	cargo clippy --all-targets --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked

## The dependency policy with known vulnerabilities; needs cargo-deny.
deny:
	scripts/deny.sh --advisories

demo:
	cargo run --release --locked -- demo

## Installs what is absent: the official SDK in .venv, and system packages.
tools:
	scripts/tools.sh

clean:
	cargo clean
	rm -rf .venv
