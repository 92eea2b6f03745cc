#!/usr/bin/env bash
# Runs the recipes of training with --smoke: models/training/smoke.sh PYTHON OUT, after `make build`. Clips and pictures are
# test patterns; what comes of it has learned nothing.
set -eu
cd "$(dirname "$0")/../.."
python=$(realpath -s "$1") out=$2
mkdir -p "$out"
out=$(realpath "$out")
bin=$PWD/target/release
export GST_PLUGIN_PATH=$bin GST_REGISTRY=$out/registry.bin

# A pack of single shots and of pictures.
pack=$out/pack
mkdir -p "$pack"
entries=()
for pattern in smpte snow ball pinwheel spokes gradient colors circular; do
  if [ ! -s "$pack/$pattern.webm" ]; then
    gst-launch-1.0 -q videotestsrc num-buffers=40 pattern=$pattern ! video/x-raw,width=96,height=54,framerate=25/1 ! \
      vp8enc deadline=1 ! webmmux ! filesink location="$pack/$pattern.webm"
    gst-launch-1.0 -q videotestsrc num-buffers=1 pattern=$pattern ! video/x-raw,width=192,height=108 ! pngenc ! \
      filesink location="$pack/$pattern.png"
  fi
  entries+=("{\"file\": \"$pattern.webm\", \"frames\": 40, \"source\": \"videotestsrc\", \"licence\": \"CC0-1.0\"}")
  entries+=("{\"file\": \"$pattern.png\", \"source\": \"videotestsrc\", \"licence\": \"CC0-1.0\"}")
done
(IFS=,; echo "[${entries[*]}]") > "$pack/manifest.json"

echo "shots"
cd models/training/shots
data=(--pack "$pack" --cache "$out/cache")
"$python" train.py "${data[@]}" --out "$out/shots" --smoke
"$python" score.py "$out/shots/model.pt" "${data[@]}" --count 2
"$python" export.py "$out/shots/model.pt" "$out/shots/shots.safetensors" --tiny "$out/shots/tiny.safetensors"
"$bin/ssm" inspect "$out/shots/shots.safetensors" > /dev/null
"$bin/ssm" verify "$out/shots/tiny.safetensors"
"$python" compare_cores.py "${data[@]}" --out "$out/cores" --smoke
for file in "$out"/cores/*.safetensors; do "$bin/ssm" inspect "$file" > /dev/null; done

echo "scan"
cd ..
"$python" check.py

echo "cores"
mkdir -p "$out/golden"
"$python" cores.py "$out/golden"
"$bin/ssm" verify "$out"/golden/*.safetensors

echo "head"
"$python" head/head.py --out "$out/head" --smoke

echo "denoise"
cd denoise
"$python" data.py --made --cache "$out/sounds"
"$python" train.py --cache "$out/sounds" --out "$out/denoise" --smoke
"$python" export.py "$out/denoise/model.pt" "$out/denoise/denoise.safetensors" --half
"$python" export.py --tiny "$out/denoise/tiny.safetensors"
"$bin/ssm" inspect "$out/denoise/denoise.safetensors" > /dev/null
"$bin/ssm" verify "$out/denoise/tiny.safetensors"
for core in mamba mamba2 s4d moe_mamba bst; do
  run=$out/denoise-$core
  "$python" train.py --cache "$out/sounds" --out "$run" --smoke --core "$core"
  "$python" export.py "$run/model.pt" "$run/denoise.safetensors" --half --golden "$run/golden.safetensors"
  "$python" export.py --tiny "$run/tiny.safetensors" --core "$core"
  "$bin/ssm" inspect "$run/denoise.safetensors" > /dev/null
  "$bin/ssm" verify "$run/tiny.safetensors"
done
