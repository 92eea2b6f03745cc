#!/usr/bin/env bash
# Installs the packages of `make deb` in a chroot of Debian 12 as a stranger would: apt finds what they need, GStreamer finds
# the plugin, a short pipeline and `ssm run` give lines, and after the removal nothing is left. Needs root and debootstrap;
# MIRROR names another Debian mirror than its default. Not part of `make test`.
#
#   make deb && tests/deb.sh [folder for the chroot]
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
root=${1:-$here/target/deb}/bookworm
export DEBIAN_FRONTEND=noninteractive

debs=("$here"/target/debian/gstreamer1.0-ssm_*.deb "$here"/target/debian/ssm-tools_*.deb)
for deb in "${debs[@]}"; do
  [ -f "$deb" ] || { echo "expected $deb: run make deb" >&2; exit 1; }
done
[ -e "$root/etc/debian_version" ] || debootstrap --variant=minbase bookworm "$root" ${MIRROR:+"$MIRROR"}
trap 'for m in dev/pts proc; do umount "$root/$m" 2>/dev/null || true; done' EXIT
mount -t proc proc "$root/proc"
mount -t devpts devpts "$root/dev/pts"
mkdir -p "$root/debs"
cp "${debs[@]}" "$root/debs/"
within() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive sh -euc "$1"; }

within 'apt-get update -qq
  apt-get install -y -qq --no-install-recommends /debs/*.deb gstreamer1.0-tools >/dev/null
  dpkg --status gstreamer1.0-ssm ssm-tools | grep -E "^(Package|Version|Depends|Multi-Arch):"
  dpkg --listfiles gstreamer1.0-ssm | grep -x "/usr/lib/$(dpkg --print-architecture | sed s/amd64/x86_64/ | sed s/arm64/aarch64/)-linux-gnu/gstreamer-1.0/libgstssm.so"
  gst-inspect-1.0 ssm | grep -E "elements|features"
  gst-launch-1.0 -q videotestsrc num-buffers=30 ! ssmevents ! ssmjson ! filesink location=/tmp/lines.jsonl
  test "$(wc -l </tmp/lines.jsonl)" -gt 20
  gst-launch-1.0 -q audiotestsrc num-buffers=50 ! audioconvert ! audioresample ! ssmdenoise ! audioconvert ! wavenc ! \
    filesink location=/tmp/clean.wav
  ssm run /tmp/clean.wav --element ssmvad --output /tmp/found
  test -s /tmp/found/tmp/clean.wav.jsonl
  test -s /usr/share/man/man1/ssm.1.gz
  bash -c ". /usr/share/bash-completion/completions/ssm && complete -p ssm" >/dev/null'
within 'apt-get purge -y -qq gstreamer1.0-ssm ssm-tools >/dev/null
  rm -rf /debs /tmp/lines.jsonl /tmp/clean.wav /tmp/found
  ! gst-inspect-1.0 ssm >/dev/null 2>&1
  ! command -v ssm
  test -z "$(find / -xdev -name "*gstssm*" -o -xdev -path "*/share/doc/*ssm*" -o -xdev -name "ssm*.1*")"'
echo "PASS: installed, ran, and gone"
