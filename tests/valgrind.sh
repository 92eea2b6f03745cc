#!/usr/bin/env bash
# Runs a short clip through ssmdenoise and ssmevents under valgrind: no invalid access in our code, and no memory that
# grows with the length of the clip. Usage: tests/valgrind.sh [libgstssm.so], by default that of `cargo build`.
#
# Only reports with a frame of ours count (valgrind names them by crate): GStreamer and GLib have reports of their own. valgrind knows no AVX-512,
# so SSM_CPU lowers the kernels to avx2.
set -euo pipefail
cd "$(dirname "$0")/.."
plugin=$(realpath "${1:-target/debug/libgstssm.so}")
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
mkdir "$logs/plugins"
ln -s "$plugin" "$logs/plugins/"
export SSM_CPU=${SSM_CPU:-avx2} GST_PLUGIN_PATH=$logs/plugins GST_REGISTRY=$logs/registry GST_REGISTRY_FORK=no
export G_SLICE=always-malloc G_DEBUG=gc-friendly
gst-inspect-1.0 ssmdenoise >"$logs/inspect"

# Plays $2 buffers under the name $1; the elements follow.
play() {
  local name=$1 buffers=$2
  shift 2
  valgrind --leak-check=full --show-leak-kinds=definite,indirect --errors-for-leak-kinds=definite --num-callers=40 \
    --log-file="$logs/$name.$buffers" gst-launch-1.0 -q "$@" >"$logs/$name.$buffers.out" 2>&1
}

# Reports with a frame of ours that are no leaks.
errors() {
  awk -v RS='\n==[0-9]+== *\n' '/gstssm|ssm_models|ssm_kernels/ && /Invalid|uninitialised|Mismatched|overlap/' "$1"
}

# Bytes definitely lost in records with a frame of ours.
lost() {
  awk -v RS='\n==[0-9]+== *\n' '/gstssm|ssm_models|ssm_kernels/ && /definitely lost in/ { gsub(",", ""); match($0, /[0-9]+ (\([^)]*\) )?bytes in/);
    n += substr($0, RSTART, RLENGTH) + 0 } END { print n + 0 }' "$1"
}

# Bytes in use at exit, of the whole process.
in_use() {
  sed -n 's/.*in use at exit: \([0-9,]*\) bytes.*/\1/p' "$1" | tr -d ,
}

failed=0
check() {
  local name=$1 few=$2 many=$3 line=$4
  play "$name" "$few" ${line//BUFFERS/$few}
  play "$name" "$many" ${line//BUFFERS/$many}
  local wrong growth
  wrong=$(errors "$logs/$name.$few"; errors "$logs/$name.$many")
  growth=$(($(in_use "$logs/$name.$many") - $(in_use "$logs/$name.$few")))
  echo "$name: lost by us $(lost "$logs/$name.$few") and $(lost "$logs/$name.$many") bytes," \
    "in use at exit $growth bytes more after $many than after $few buffers"
  # GLib keeps a few things for later, up to some kilobytes; the smallest object of a buffer has more than 64 bytes.
  if [ -n "$wrong" ] || [ "$growth" -gt $((64 * (many - few))) ] ||
    [ "$(lost "$logs/$name.$many")" -gt "$(lost "$logs/$name.$few")" ]; then
    echo "$wrong" | head -60
    failed=1
  fi
}

check ssmdenoise 20 220 \
  "audiotestsrc num-buffers=BUFFERS samplesperbuffer=320 ! audio/x-raw,format=F32LE,rate=16000,channels=2 ! ssmdenoise ! fakesink"
check ssmvad 20 220 \
  "audiotestsrc num-buffers=BUFFERS samplesperbuffer=320 ! audio/x-raw,format=F32LE,rate=16000,channels=1 ! ssmvad ! ssmjson ! fakesink"
check ssmevents 20 70 \
  "videotestsrc pattern=snow num-buffers=BUFFERS ! video/x-raw,format=RGB,width=64,height=36,framerate=25/1 ! ssmevents threshold=0.01 low-threshold=0.005 cooldown=0 ! ssmoverlay ! ssmjson ! fakesink"
[ "$failed" = 0 ] && echo PASS || echo FAIL
exit "$failed"
