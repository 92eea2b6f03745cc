#!/usr/bin/env bash
# The pictures of the README: the sound of `make demo`, and a film of test pictures (the frames of the demo's clip are not ours
# to give on).
set -eu
cd "$(dirname "$0")/../.."
ssm=${SSM:-target/release/ssm}
export GST_PLUGIN_PATH=${GST_PLUGIN_PATH:-$PWD/target/release} GST_REGISTRY=$PWD/demo-out/registry.bin
film=demo-out/patterns.mkv
scenes=
for pattern in smpte zone-plate pinwheel circular spokes ball; do
  extra=
  [ $pattern != zone-plate ] || extra="kx2=12 ky2=12 kt=2"
  scenes+=" videotestsrc num-buffers=50 pattern=$pattern $extra ! video/x-raw,width=640,height=272,framerate=25/1 ! both."
done
gst-launch-1.0 -q $scenes concat name=both ! jpegenc ! matroskamux ! filesink location=$film
$ssm shots $film --sheet demo-out/patterns.png
gst-launch-1.0 -q filesrc location=$film ! decodebin ! videoconvert ! ssmevents ! identity eos-after=230 ! ssmoverlay ! \
  videoconvert ! pngenc ! multifilesink location=demo-out/pattern.png
small() {
  gst-launch-1.0 -q filesrc location="demo-out/$1.png" ! pngdec ! videoconvert ! videoscale method=lanczos ! \
    "video/x-raw,width=$3,height=$4,pixel-aspect-ratio=1/1" ! videoconvert ! jpegenc quality=75 ! filesink location="docs/pictures/$2.jpg"
}
small spectrogram spectrogram 480 312
small patterns shots 1008 98
small pattern overlay 640 272
