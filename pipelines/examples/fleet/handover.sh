#!/usr/bin/env bash
# A live stream moves from one machine to another with its state, through a folder that both see or an object store.
#
#   handover.sh start SOURCE [ELEMENT]   # goes on from the stored state, if there is one; lines of results to the output
#   handover.sh stop PID                 # of the start on this machine: it ends, and its state goes into the store
#
# STREAM names the stream (default camera). STORE is the folder, or a URL that `ssm state` knows (s3://BUCKET/…); or PUT and GET
# are commands that take a file and a name, or a name and a file, as $1 and $2. GET ends with 3 where there is no such state yet.
set -euo pipefail
name=${STREAM:-camera}.state
case ${STORE-} in
  *://*)
    put=${PUT:-'ssm state put "$1" "$STORE/$2"'}
    get=${GET:-'ssm state get "$STORE/$1" "$2"'}
    ;;
  *)
    put=${PUT:-'cp "$1" "${STORE:?a folder}/$2.part" && mv "$STORE/$2.part" "$STORE/$2"'}
    get=${GET:-'[ -d "${STORE:?a folder}" ] || exit 1; [ -e "$STORE/$1" ] || exit 3; cp "$STORE/$1" "$2"'}
    ;;
esac
here=${TMPDIR:-/tmp}/ssm-handover-$(id -u)
mkdir -p -m 700 "$here"
# Somebody else could have made it, to write over files through it or to put states in.
[ -O "$here" ] && [ ! -L "$here" ] || { echo "$here is not yours: set TMPDIR" >&2; exit 1; }
chmod 700 "$here"
export STORE=${STORE-}

case ${1-} in
  start)
    source=${2:?a source}
    element=${3:-ssmevents}
    case $element in
      ssmdenoise* | ssmvad* | ssmaudiotag*) convert='audioconvert ! audioresample' ;;
      *) convert=videoconvert ;;
    esac
    if [ -e "$here/$name.out" ]; then
      echo "$here/$name.out was not stored yet: handover.sh stop does it, or remove the file" >&2
      exit 1
    fi
    # A store that is away is no reason to forget what is in it.
    from= code=0
    bash -c "$get" get "$name" "$here/$name.in" || code=$?
    case $code in
      0) from=state-in=$here/$name.in; echo "going on from $name" >&2 ;;
      3) ;;
      *) echo "$name could not be got ($code)" >&2; exit 1 ;;
    esac
    # -e: an interrupt becomes the end of stream, at which the state is written.
    # The words of a source and an element are words of the pipeline.
    # shellcheck disable=SC2086
    exec gst-launch-1.0 -q -e $source ! $convert ! \
      $element $from state-out="$here/$name.out" reset-on=flush+segment+caps ! ssmjson ! fdsink sync=false
    ;;
  stop)
    # Where the store was away at the first try the process has ended already, and another one may have its number.
    if [ ! -e "$here/$name.out" ]; then
      kill -INT "${2:?a process}"
      while kill -0 "$2" 2>/dev/null; do sleep 0.1; done
    fi
    bash -c "$put" put "$here/$name.out" "$name"
    rm "$here/$name.out"
    echo "stored $name" >&2
    ;;
  *)
    sed -n '2,8p' "$0" >&2
    exit 2
    ;;
esac
