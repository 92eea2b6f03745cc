#!/usr/bin/env bash
# Two cameras side by side with what the model sees in each, in one window. The two elements share one copy of the model.
#
#   wall.sh [CAMERA] [CAMERA] [SINK]     # each as for gst-launch-1.0; without: two test pictures
set -eu
left=${1:-videotestsrc is-live=true}
right=${2:-videotestsrc is-live=true pattern=ball}
sink=${3:-autovideosink}
form='videoconvert ! videoscale ! video/x-raw,width=480,height=270 ! queue'
# Where that takes too long, frames that are late are shown without being looked at.
seen='ssmevents batch-timeout=5000000 qos=true ! ssmoverlay ! videoconvert ! queue'
# The words of a source and a sink are words of the pipeline.
# shellcheck disable=SC2086
exec gst-launch-1.0 -q -e compositor name=wall background=black sink_1::xpos=480 ! videoconvert ! $sink \
  $left ! $form ! $seen ! wall.sink_0 \
  $right ! $form ! $seen ! wall.sink_1
