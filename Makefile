# What people type. Everything but `build` needs root, or User-Mode Linux (make demo).
BIN := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/debug

.PHONY: build packages demo demo-remove test check unit-and-e2e kernel-datapath bench

# Optimised binaries, in target/release/.
build:
	cargo build --release --workspace --bins

packages:
	tests/install-packages

# Three nodes and three tenants in namespaces, shown step by step; KEEP=1 leaves them standing.
demo: packages
	cargo build --workspace --bins
	KEEP=$(KEEP) tests/demo

# Removes what `make demo KEEP=1` left standing.
demo-remove:
	$(BIN)/demo --remove

test: packages check unit-and-e2e kernel-datapath

check:
	cargo fmt --all -- --check
	tests/crate-direction
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p tenon-netdev --test uml -p tenon-tests --test vlan -- -D warnings

# Unit tests and end-to-end tests, on the userspace datapath.
unit-and-e2e:
	cargo build --workspace --bins
	if command -v cargo-nextest > /dev/null; then cargo nextest run --workspace; else cargo test --workspace --all-targets; fi
	cargo test --workspace --doc
	$(BIN)/demo --sweep

# The same end-to-end tests on the kernel datapath.
kernel-datapath:
	cargo build --workspace --bins
	binaries=$$(tests/list-binaries) && tests/uml/suite $$binaries

# Attach times, pods per second, joins, size and memory, beside other ways to the same end; about four minutes.
bench: packages
	cargo build --release --bins -p tenon -p tenon-agent -p tenon-tests
	$(BIN:debug=release)/bench
