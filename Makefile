# Thin on purpose: each target is one script.
.PHONY: help demo test arm pi-test pi-smoke lint bench-runtime bench-delta bench-link

help:
	@echo "make demo   one voyage with real bytes: publish, pull over a bad link, run, delta update, kill, restart offline"
	@echo "make test   every test, on real parts (installs what is missing when run as root, else names it)"
	@echo "make arm    static binaries for the boards, checked against cross/expected.toml (TARGETS=... for some of them)"
	@echo "make pi-test   tests on emulated boards: Debian's kernels 6.1 and 6.12, 64 and 32 bits, power cuts (WHERRY_PI_CUTS=...)"
	@echo "make pi-smoke  a part of it: one kernel, 64 bits, about ten minutes"
	@echo "make lint   rustfmt, clippy, cargo deny, rustdoc and the house rules"
	@echo "make bench-runtime   the runtime beside crun and runc, interleaved (ROUNDS=100); not part of make test"
	@echo "make bench-delta   our deltas of real layers beside xdelta3, bsdiff, rdiff and zstd (PAIRS=... for some); not part of make test"
	@echo "make bench-link   pulls over bad links, beside podman and skopeo, with what is wanted (ONLY=outage); not part of make test"

demo:
	@tests/steps demo

test:
	@tests/steps test

arm:
	@tests/steps arm

pi-test:
	@tests/steps pi-test

pi-smoke:
	@tests/steps pi-smoke

lint:
	@tests/steps lint

bench-runtime:
	@tests/steps bench-runtime $(ROUNDS)

bench-delta:
	@tests/steps bench-delta $(PAIRS)

bench-link:
	@tests/steps bench-link $(ONLY)
