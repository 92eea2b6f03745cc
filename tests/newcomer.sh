#!/usr/bin/env bash
# A newcomer's way, timed: a Debian 12 with nothing but its base, git and Rust; a clone; `make demo`. The toolchain is the one of
# this machine, as rustup would have laid it. Needs root, debootstrap and a Debian mirror (MIRROR names another one than the
# default). Not part of `make test`.
#
#   tests/newcomer.sh [folder for the chroot]
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
root=${1:-$here/target/newcomer}/bookworm

[ -e "$root/etc/debian_version" ] || debootstrap --variant=minbase bookworm "$root" ${MIRROR:+"$MIRROR"}
toolchain=$(rustc --print sysroot)
trap 'for m in opt/rust opt/source dev/pts proc; do umount "$root/$m" 2>/dev/null || true; done' EXIT
mkdir -p "$root/opt/rust" "$root/opt/source"
mount -t proc proc "$root/proc"
mount -t devpts devpts "$root/dev/pts"
mount --bind -o ro "$toolchain" "$root/opt/rust"
mount --bind -o ro "$(git -C "$here" rev-parse --path-format=absolute --git-common-dir)" "$root/opt/source"
cp /etc/resolv.conf "$root/etc/resolv.conf"
commit=$(git -C "$here" rev-parse HEAD)
within() {
  chroot "$root" env -i PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt bash -euc "$1"
}
within 'apt-get update -qq && apt-get install -y -qq --no-install-recommends git ca-certificates make >/dev/null
  git config --global --add safe.directory "*"'
# Authorities that this machine trusts beside Debian's, such as a company's.
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
within 'update-ca-certificates >/dev/null 2>&1'

start=$SECONDS
within "rm -rf /srv/gst-plugin-ssm && git clone -q /opt/source /srv/gst-plugin-ssm && cd /srv/gst-plugin-ssm &&
  git checkout -q $commit && make demo"
took=$((SECONDS - start))
for file in denoised.wav spectrogram.png events.jsonl overlay.png shots.png classes.jsonl; do
  [ -s "$root/srv/gst-plugin-ssm/demo-out/$file" ] || { echo "FAIL: $file is not there"; exit 1; }
done
echo "PASS: two commands (git clone, make demo), $((took / 60)) min $((took % 60)) s, $(nproc) cores"
