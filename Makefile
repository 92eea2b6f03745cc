# One place for the commands. Every target installs what it needs and is missing, and is quick when all is there.

SHELL := /bin/bash
CARGO ?= cargo
PLUGINS ?= $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/gstreamer-1.0/plugins
# What is off by default and tested.
FEATURES := --features ssm-pipelines/mqtt

.PHONY: help deps build lint test soak bench demo install quality clean

help:
	@echo "make demo     install what is missing, build, run real sound and real video through the elements"
	@echo "make test     install what is missing, build, run every check and test"
	@echo "make soak     24 simulated hours of streams, or MINUTES=30 of them; nothing may grow"
	@echo "make bench    benchmarks of kernels and models"
	@echo "make install  put the plugin into your GStreamer plugin folder and ssm into ~/.cargo/bin"
	@echo "make lint     formatting and clippy only"
	@echo "make quality  PESQ and STOI for ssm eval-denoise, into .venv"

deps:
	@./.ci/deps

build: deps
	$(CARGO) build --release -p gst-plugin-ssm -p ssm-pipelines

lint: deps
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets $(FEATURES) -- -D warnings

# The last line adds up what the test binaries said.
test: lint
	@./.ci/deps mosquitto
	@mkdir -p target
	@set -o pipefail; $(CARGO) test --workspace $(FEATURES) --no-fail-fast 2>&1 | tee target/test.log; code=$$?; \
	awk '/^test result:/ { passed += $$4; failed += $$6 } END { print passed + 0 " passed, " failed + 0 " failed" }' \
	  target/test.log; exit $$code

# The allocator gives back what is free at once: what it keeps for later would hide what we leak.
soak: deps
	MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=0 MALLOC_MMAP_THRESHOLD_=65536 \
	$(CARGO) run --release -p ssm-tests --bin soak -- --minutes $(or $(MINUTES),30)

bench: deps
	$(CARGO) run --release --manifest-path tests/bench/Cargo.toml

demo: build
	@./pipelines/demo.sh

install: build
	install -D -m 755 target/release/libgstssm.so $(PLUGINS)/libgstssm.so
	$(CARGO) install --path pipelines --locked
	@echo "installed $(PLUGINS)/libgstssm.so; try: gst-inspect-1.0 ssm"

# pesq comes as C source.
quality:
	@.venv/bin/python -c 'import pesq, pystoi' 2>/dev/null || \
	  { ./.ci/deps python3-dev && python3 -m venv .venv && .venv/bin/pip install -q pesq==0.0.4 pystoi==0.4.1; }

clean:
	$(CARGO) clean
	rm -rf demo-out
