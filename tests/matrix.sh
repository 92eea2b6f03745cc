#!/usr/bin/env bash
# Builds the plugin against a newer GStreamer, in a chroot of a newer Debian, and looks for the metas of GstAnalytics on
# buffers. Needs root and debootstrap; MIRROR names another Debian mirror than its default, STALE=1 takes its lists though
# they are past their date (they must be signed all the same). Not part of `make test`.
#
#   tests/matrix.sh 1.26|1.28 [folder for the chroot]
set -eu

version=${1:?which GStreamer: 1.26 or 1.28}
case $version in
  1.26) suite=trixie ;;
  1.28) suite=testing ;;
  *) echo "expected 1.26 or 1.28, got $version" >&2; exit 1 ;;
esac
here=$(cd "$(dirname "$0")/.." && pwd)
root=${2:-$here/target/matrix}/$version
export DEBIAN_FRONTEND=noninteractive

[ -e "$root/etc/debian_version" ] || debootstrap --variant=minbase "$suite" "$root" ${MIRROR:+"$MIRROR"}
if ! chroot "$root" pkg-config --exists gstreamer-analytics-1.0 2>/dev/null; then
  chroot "$root" apt-get update -qq ${STALE:+-o Acquire::Check-Valid-Until=false}
  chroot "$root" apt-get install -y -qq --no-install-recommends gcc libc6-dev pkg-config ca-certificates \
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev libgstreamer-plugins-bad1.0-dev gstreamer1.0-tools \
    gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
fi
chroot "$root" sh -c 'command -v python3 >/dev/null && python3 -c "import gi; gi.require_version(\"GstAnalytics\", \"1.0\")"' \
  2>/dev/null || chroot "$root" apt-get install -y -qq --no-install-recommends python3-gi gir1.2-gst-plugins-bad-1.0
found=$(chroot "$root" pkg-config --modversion gstreamer-1.0)
case $found in $version.*) ;; *) echo "expected GStreamer $version in $suite, got $found" >&2; exit 1 ;; esac

# The toolchain and the downloaded crates of this machine, and the repository, as it is.
mkdir -p "$root"/{rust,cargo,repo,target}
trap 'for m in rust cargo repo proc; do umount "$root/$m" 2>/dev/null || true; done' EXIT
mount --bind "$(rustc --print sysroot)" "$root/rust"
mount --bind "${CARGO_HOME:-$HOME/.cargo}" "$root/cargo"
mount --bind "$here" "$root/repo"
mount -t proc proc "$root/proc"
# Crates that only this build needs are fetched out here, where there is a network.
cargo fetch --locked --manifest-path "$here/Cargo.toml"
chroot "$root" env PATH=/rust/bin:/usr/bin:/bin CARGO_HOME=/cargo CARGO_TARGET_DIR=/target SSM_VERSION="$version" \
  sh -eu -c 'cd /repo
    for minor in 24 26 28; do
      [ "$minor" -gt "${SSM_VERSION#1.}" ] ||
        /rust/bin/cargo-clippy clippy --locked --offline -p gst-plugin-ssm --all-targets --features "v1_$minor" -- -D warnings
    done
    cargo build --locked --offline -p gst-plugin-ssm --features "v1_${SSM_VERSION#1.}"
    export GST_PLUGIN_PATH=/target/debug
    gst-inspect-1.0 ssm
    python3 tests/matrix.py'
echo "GStreamer $found: built, and the metas are there"
