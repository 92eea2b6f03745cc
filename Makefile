# One place for the commands. Every target installs what it needs and is missing, and is quick when all is there.

SHELL := /bin/bash
CARGO ?= cargo

.PHONY: help deps lint test bench demo install clean

help:
	@echo "make demo     install what is missing, build, run real sound and real video through the elements"
	@echo "make test     install what is missing, build, run every check and test"
	@echo "make bench    benchmarks of kernels and models"
	@echo "make install  put the plugin into your GStreamer plugin folder and ssm into ~/.cargo/bin"
	@echo "make lint     formatting and clippy only"

deps:
	@./.ci/deps

lint: deps
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

test: lint
	$(CARGO) test --workspace

clean:
	$(CARGO) clean
	rm -rf demo-out
