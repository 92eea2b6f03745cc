#!/usr/bin/env bash
# Every fuzz target, or those named, for SECONDS_EACH seconds from its corpus. PLANTED=1: each has a bug, which it has to find.
set -eu
cd "$(dirname "$0")"
# Chance has a part in it: a planted bug gets longer, and ends the run when it is found.
seconds=${SECONDS_EACH:-$([ -n "${PLANTED:-}" ] && echo 300 || echo 60)}
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"/\1/p' Cargo.toml)
features=()
[ -z "${PLANTED:-}" ] || features=(--features planted)
# Nothing but the kernels has unsafe code, and those have their own tests: the sanitizer would only make it slow.
export CARGO_TARGET_DIR=$PWD/target
cargo +nightly fuzz build --fuzz-dir . -s none "${features[@]}"
mkdir -p target/found
failed=()
for target in "${targets[@]}"; do
  # What is found goes into a folder of its own: the corpus in the tree stays small.
  new=target/found/$target${PLANTED:+-planted}
  mkdir -p "$new" "artifacts/$target"
  log=$new.log
  case $target in safetensors | config | composite) how=(-dict=json.dict) ;; *) how=() ;; esac
  # A header with one mistake seldom gets right by a second one.
  [ "$target" != safetensors ] || how+=(-mutate_depth=1)
  code=0
  # A bug is to be found from the first files, not to lie in the corpus.
  corpus=corpus/$target
  if [ -n "${PLANTED:-}" ]; then
    corpus=target/first/$target
    rm -rf "$corpus" "$new" && mkdir -p "$corpus" "$new"
    find "corpus/$target" -type f ! -name "????????????????????????????????????????" ! -name "s4*" -exec cp {} "$corpus" \;
  fi
  "$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release/$target" "$new" "$corpus" -max_total_time="$seconds" \
    -timeout=20 -rss_limit_mb=3072 -malloc_limit_mb=2048 -max_len=32768 -print_final_stats=1 \
    "${how[@]}" -artifact_prefix="artifacts/$target/" >"$log" 2>&1 || code=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  echo "$target: $runs runs, code $code"
  if [ -n "${PLANTED:-}" ]; then
    grep -qx "planted" "$log" || failed+=("$target")
  elif [ "$code" != 0 ]; then
    failed+=("$target")
  fi
done
[ ${#failed[@]} = 0 ] || { echo "${PLANTED:+not found in }failed: ${failed[*]} (target/found/*.log, artifacts/)"; exit 1; }
