#!/usr/bin/env bash
# What only a machine with a CUDA card can show. `tests/gpu.sh pack` gathers all of it into target/gpu (or the folder given);
# there `./gpu.sh run` needs no network and nothing installed but the card's driver. It prints one table and fails if a
# row does.
#
# compute-sanitizer comes with the CUDA toolkit; without it those rows say SKIP. `DEVICE=cpu SMOKE=1 BATCHES=1 ./gpu.sh run`
# shows without a card that it runs.
set -euo pipefail

pack() {
  local out=${1:+$(realpath -m "$1")} network
  cd "$(dirname "$0")/.."
  out=${out:-target/gpu}
  cargo build --release -p ssm-pipelines
  cargo build --release --manifest-path tests/bench/Cargo.toml
  mkdir -p "$out"/{bin,lib,golden,models}
  cp target/release/ssm tests/bench/target/release/ssm-bench "$out/bin/"
  # The machine has a C library of its own; everything else travels.
  ldd "$out/bin/ssm" | awk '$3 ~ /^\// && $1 !~ /^(libc|libm|libdl|librt|libpthread)\.so/ { print $3 }' |
    xargs -I{} cp -L {} "$out/lib/"
  cp tests/golden/{vim,vmamba,mamba,mamba2,moe_mamba,s4,s4d,band_mask,composite,bst}_*.safetensors "$out/golden/"
  # Their weights lie elsewhere: they find them two folders above.
  rm "$out"/golden/{composite_shots,band_mask_denoise}.safetensors
  for network in vim-tiny vim-small vmamba-tiny mamba-130m; do
    [[ -e $out/models/$network.safetensors ]] || "$out/bin/ssm" random "$network" -o "$out/models/$network.safetensors"
  done
  cp tests/gpu.sh "$out/gpu.sh"
  cp tests/bench/peers/{gpu,vim}.py "$out/"
  echo "packed: $out"
}

# A line of the table.
row() { printf '| %-44s | %-40s |\n' "$1" "$2"; }

# Runs a check, keeps what it prints in log/$1, and writes its row.
check() {
  local name=$1 say
  shift
  if "$@" >"log/$name" 2>&1; then say=PASS; else say=FAIL failed=1; fi
  row "$name" "$say: $(tail -n 1 "log/$name" | cut -c 1-32)"
}

run() {
  cd "$(dirname "$0")"
  export LD_LIBRARY_PATH=$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  local device=${DEVICE:-cuda} seconds=${SECONDS_EACH:-3} failed=0 small file
  mkdir -p log
  row what result
  row "$(printf -- '-%.0s' {1..44})" "$(printf -- '-%.0s' {1..40})"
  row card "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 || echo '?')"

  # Files of what is for the processor only are told and counted apart.
  golden() {
    bin/ssm verify --device "$device" --chunks "$1" golden >"log/$1.txt" || true
    cat "log/$1.txt"
    grep -q '[1-9][0-9]* passed, 0 failed' "log/$1.txt"
  }
  check golden-whole golden whole
  check golden-random golden random

  small=(golden/vim_carry_cfg_a.safetensors golden/vmamba_variant_no_conv.safetensors
    golden/mamba_block_tiny.safetensors golden/mamba_lm_layernorm_mlp.safetensors)
  for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
      check "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 bin/ssm verify --device "$device" "${small[@]}"
    else
      row "$tool" "SKIP: no compute-sanitizer"
    fi
  done

  for file in models/*.safetensors; do
    for precision in f32 bf16; do
      for batch in ${BATCHES:-1 16 64}; do
        local name="$(basename "$file" .safetensors) $precision batch $batch" say
        if say=$(bin/ssm-bench model "$file" --device "$device" --batch "$batch" --precision "$precision" \
          --seconds "$seconds" 2>"log/bench" | grep -o '"milliseconds":[0-9.e-]*'); then
          row "$name" "${say#*:} ms a pass"
        else
          failed=1
          row "$name" "FAIL: $(tail -n 1 log/bench | cut -c 1-32)"
        fi
      done
    done
  done

  # With peers where there is torch. A row that cannot be measured says why.
  if python3 -c '' 2>/dev/null; then
    python3 gpu.py all --device "$device" --seconds "$seconds" ${SMOKE:+--smoke} 2>log/peers || {
      failed=1
      row "gpu.py" "FAIL: $(tail -n 1 log/peers | cut -c 1-32)"
    }
  else
    row "gpu.py" "SKIP: no python3"
  fi
  return $failed
}

case ${1:-} in
pack) pack "${2:-}" ;;
run) run ;;
*)
  echo "usage: $0 pack [FOLDER] | run" >&2
  exit 2
  ;;
esac
