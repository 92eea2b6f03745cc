# One place for the commands. Every target installs what it needs and is missing, and is quick when all is there.

SHELL := /bin/bash
CARGO ?= cargo

# Without PREFIX the plugin goes where GStreamer looks for your own ones; with it, into the folder of the architecture, where
# GStreamer looks by itself if PREFIX is /usr.
ifdef PREFIX
  PLUGINS ?= $(PREFIX)/lib/$(shell $(CC) -dumpmachine)/gstreamer-1.0
  BIN ?= $(PREFIX)/bin
  SHARE ?= $(PREFIX)/share
else
  ifneq (,$(filter install uninstall,$(MAKECMDGOALS)))
    $(if $(HOME),,$(error expected PREFIX, or HOME to be set))
  endif
  SHARE ?= $(or $(XDG_DATA_HOME),$(HOME)/.local/share)
  PLUGINS ?= $(SHARE)/gstreamer-1.0/plugins
  BIN ?= $(HOME)/.cargo/bin
endif
# Where PyTorch is, for train-smoke.
TRAIN_VENV ?= .venv-train
# Where the benchmark's peers are, for bench-peers.
PEERS_VENV ?= .venv-peers
PEERS := $(PEERS_VENV)/bin/python
# What is off by default and tested.
FEATURES := --features ssm-pipelines/mqtt,ssm-pipelines/store
COMPLETIONS := bash-completion/completions/ssm zsh/vendor-completions/_ssm fish/vendor_completions.d/ssm.fish

# Tools that cargo builds, each once, into the folder of what is built.
TOOLS := target/tools/bin
tool = @test -x $(TOOLS)/$(1) || $(CARGO) install -q --locked --debug --root target/tools $(2)

.PHONY: help deps build lint test soak train-smoke bench bench-peers demo share install uninstall deb quality ptx clean reference book \
  deny fuzz miri coverage

help:
	@echo "make demo     install what is missing, build, run real sound and real video through the elements"
	@echo "make test     install what is missing, build, run every check and test"
	@echo "make soak     24 simulated hours of streams, or MINUTES=30 of them; nothing may grow"
	@echo "make train-smoke   the recipes of training, tiny, with PyTorch in .venv-train"
	@echo "make bench    benchmarks of kernels, models, an element and streams, and of peers if they are there; QUICK=1"
	@echo "make bench-peers   beside PyTorch, ONNX Runtime, transformers and C, in .venv-peers; QUICK=1: seconds, for trying"
	@echo "make install  put the plugin into your GStreamer plugin folder and ssm into ~/.cargo/bin; PREFIX=/usr, DESTDIR=…"
	@echo "make uninstall  take them away (with the same PREFIX)"
	@echo "make deb      two Debian packages in target/debian: the plugin, and the command ssm"
	@echo "make lint     formatting and clippy only"
	@echo "make ptx      make the PTX of the CUDA kernels anew, with NVRTC from PyPI; no card is needed"
	@echo "make book     the pages of docs/ as HTML, in target/book"
	@echo "make reference  write docs/reference and docs/interface.txt from the registry"
	@echo "make deny     licences, sources and known weaknesses of what is built in"
	@echo "make fuzz     every fuzz target for SECONDS_EACH=60; PLANTED=1 looks whether they find a bug"
	@echo "make miri     tests of the scalar kernels, interpreted; needs a nightly compiler with miri"
	@echo "make coverage how much of the code the tests run"
	@echo "make quality  PESQ and STOI for ssm eval-denoise, into .venv"

deps:
	@./.ci/deps

# What follows looks there, whatever CARGO_TARGET_DIR says.
build: deps
	$(CARGO) build --release --target-dir target -p gst-plugin-ssm -p ssm-pipelines

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
	@if $(TRAIN_VENV)/bin/python -c 'import torch' 2>/dev/null; then $(MAKE) train-smoke; \
	  else echo "no PyTorch in $(TRAIN_VENV): the recipes of training are left out (make train-smoke)"; fi

# Trains nothing of use: every recipe runs from its first line to its last.
train-smoke: build
	@$(TRAIN_VENV)/bin/python -c 'import av, cv2, matplotlib, safetensors, scipy, soundfile, torch' 2>/dev/null || \
	  { python3 -m venv $(TRAIN_VENV) && $(TRAIN_VENV)/bin/pip install -q \
	    -r models/training/shots/requirements.txt -r models/training/denoise/requirements.txt; }
	models/training/smoke.sh $(TRAIN_VENV)/bin/python target/train-smoke

# QUICK=1: seconds instead of minutes, to see that all of it runs.
SIZES := --sizes 224,384,512,768,1248 --rounds 3
SSM_BENCH = $(or $(CARGO_TARGET_DIR),tests/bench/target)/release
VIM := demo-out/vim-tiny-random.safetensors

bench: build $(VIM)
	$(CARGO) build --release --manifest-path tests/bench/Cargo.toml
	$(SSM_BENCH)/ssm-bench $(if $(QUICK),--steps 20000 --seconds 0.5)
	$(SSM_BENCH)/element $(VIM) $(if $(QUICK),--seconds 1)
	@if $(PEERS) -c 'import matplotlib, onnxruntime, torch, transformers' 2>/dev/null; then $(MAKE) bench-peers; \
	  else echo "no peers in $(PEERS_VENV): they are left out (make bench-peers)"; fi

$(VIM): | build
	@mkdir -p $(dir $@)
	target/release/ssm random vim-tiny --seed 7 --output $@

bench-peers: deps
	@$(PEERS) -c 'import matplotlib, onnxruntime, torch, transformers' 2>/dev/null || \
	  { python3 -m venv $(PEERS_VENV) && $(PEERS_VENV)/bin/pip install -q -r tests/bench/peers/requirements.txt; }
	$(CARGO) build --release --manifest-path tests/bench/Cargo.toml
	$(PEERS) tests/bench/peers/vim.py $(if $(QUICK),--quick)
	$(PEERS) tests/bench/peers/vim.py $(if $(QUICK),--sizes 224 --quick,$(SIZES))
	$(PEERS) tests/bench/peers/vmamba.py $(if $(QUICK),--quick)
	$(PEERS) tests/bench/peers/mamba.py $(if $(QUICK),--quick)

demo: build
	@./pipelines/demo.sh

# Pages for man and what shells complete by, from the command itself; whose code and whose data are inside.
share: build
	@rm -rf target/share && mkdir -p $(addprefix target/share/,$(dir $(COMPLETIONS)))
	@target/release/ssm man target/share/man/man1
	@target/release/ssm completions bash > target/share/bash-completion/completions/ssm
	@target/release/ssm completions zsh > target/share/zsh/vendor-completions/_ssm
	@target/release/ssm completions fish > target/share/fish/vendor_completions.d/ssm.fish
	@CARGO=$(CARGO) .ci/notices > target/share/THIRD-PARTY
	@cp models/builtin/README.md target/share/WEIGHTS.md

install: share
	install -D -m 644 target/release/libgstssm.so "$(DESTDIR)$(PLUGINS)/libgstssm.so"
	install -D -m 755 target/release/ssm "$(DESTDIR)$(BIN)/ssm"
	install -d "$(DESTDIR)$(SHARE)/man/man1"
	install -m 644 target/share/man/man1/*.1 "$(DESTDIR)$(SHARE)/man/man1/"
	for f in $(COMPLETIONS); do install -D -m 644 target/share/$$f "$(DESTDIR)$(SHARE)/$$f"; done
	install -D -m 644 -t "$(DESTDIR)$(SHARE)/doc/gst-plugin-ssm" LICENSE target/share/THIRD-PARTY target/share/WEIGHTS.md
	@echo "installed $(DESTDIR)$(PLUGINS)/libgstssm.so; try: gst-inspect-1.0 ssm"

uninstall:
	rm -f "$(DESTDIR)$(PLUGINS)/libgstssm.so" "$(DESTDIR)$(BIN)/ssm"
	rm -f "$(DESTDIR)$(SHARE)/man/man1"/ssm.1 "$(DESTDIR)$(SHARE)/man/man1"/ssm-*.1
	for f in $(COMPLETIONS); do rm -f "$(DESTDIR)$(SHARE)/$$f"; done
	rm -rf "$(DESTDIR)$(SHARE)/doc/gst-plugin-ssm"

# The two packages are apart because the plugin may be there for several architectures, and a command may not.
deb: share
	@command -v cargo-deb >/dev/null || $(CARGO) install -q --locked --no-default-features cargo-deb@3.8.0
	$(CARGO) deb -q -p gst-plugin-ssm --no-build --multiarch same
	$(CARGO) deb -q -p ssm-pipelines --no-build
	@ls target/debian/*.deb

reference: deps
	@mkdir -p docs/reference
	$(CARGO) run -q -p ssm-tests --bin reference

book:
	$(call tool,mdbook,--no-default-features --features search mdbook@0.5.4)
	@PATH=$$PWD/$(TOOLS):$$PATH .ci/book

# Known weaknesses are asked of a database on the network: offline, `make deny CHECKS="licenses bans sources"`.
deny:
	$(call tool,cargo-deny,cargo-deny@0.20.2)
	$(TOOLS)/cargo-deny check $(or $(CHECKS),licenses bans sources advisories)

fuzz: deps
	$(call tool,cargo-fuzz,cargo-fuzz@0.13.2)
	@PATH=$$PWD/$(TOOLS):$$PATH tests/fuzz/run.sh

# The interpreter adds errors of rounding of its own unless it is told not to; the tests allow theirs only.
miri:
	cd kernels && MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-deterministic-floats" SSM_CPU=scalar RUST_BACKTRACE=0 \
	  $(CARGO) +nightly miri test --target-dir ../target/miri --lib -- activation:: patch:: cross_scan:: causal_conv1d::

# Not `llvm-cov test`: that leaves out the examples, which tests run.
coverage: deps
	@./.ci/deps mosquitto
	$(call tool,cargo-llvm-cov,cargo-llvm-cov@0.9.1)
	@export CARGO_TARGET_DIR=$$PWD/target/llvm-cov-target; source <($(TOOLS)/cargo-llvm-cov llvm-cov show-env --sh 2>/dev/null); \
	rm -f $$CARGO_TARGET_DIR/*.profraw; $(CARGO) test --workspace $(FEATURES) --no-fail-fast && \
	$(TOOLS)/cargo-llvm-cov llvm-cov report --summary-only $(COVERAGE)

# pesq comes as C source.
quality:
	@.venv/bin/python -c 'import pesq, pystoi' 2>/dev/null || \
	  { ./.ci/deps python3-dev && python3 -m venv .venv && .venv/bin/pip install -q pesq==0.0.4 pystoi==0.4.1; }

# Where the tests keep NVRTC.
ptx: deps
	python3 kernels/tests/cuda/ptx.py target/tmp/nvidia make kernels/ptx

clean:
	$(CARGO) clean
	rm -rf demo-out
