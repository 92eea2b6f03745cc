#!/usr/bin/env bash
# A live stream moves through an S3 store: moto's server (PyPI) on this machine, handover.sh, and `ssm state` as a user has it.
# Builds the plugin and ssm with the feature s3 (FEATURES names others, too). VENV names a folder for moto (target/moto).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-target/moto}
work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server"; fi; rm -rf "$work"' EXIT

fail() { echo "FAIL: $1"; exit 1; }

cargo build -q -p gst-plugin-ssm -p ssm-pipelines --features "${FEATURES:-ssm-pipelines/s3}"
[ -x "$venv/bin/moto_server" ] || { python3 -m venv "$venv"; "$venv/bin/pip" install -q 'moto[server]==5.2.5'; }

mkdir "$work/plugins"
ln -s "$PWD/target/debug/libgstssm.so" "$work/plugins/"
export GST_PLUGIN_PATH=$work/plugins GST_REGISTRY=$work/registry TMPDIR=$work PATH=$PWD/target/debug:$PATH
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ALLOW_HTTP=true AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=camera AWS_SECRET_ACCESS_KEY=secret
"$venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 100); do curl -s -o /dev/null "$AWS_ENDPOINT_URL" && break; sleep 0.2; done
"$venv/bin/python" -c 'import boto3; boto3.client("s3").create_bucket(Bucket="states")'

code=0
ssm state get s3://states/hall/camera.state "$work/none" 2>"$work/said" || code=$?
[ "$code" = 3 ] || fail "a state that is not there ends with $code: $(cat "$work/said")"
code=0
ssm state get s3://absent/camera.state "$work/none" 2>"$work/said" || code=$?
[ "$code" = 1 ] || fail "a bucket that is not there ends with $code: $(cat "$work/said")"
echo "no bucket: code $code, $(cat "$work/said")"

# Some lines, then the end: the steps of the first line and of the last.
turn() {
  STORE=s3://states/hall pipelines/examples/fleet/handover.sh start 'videotestsrc is-live=true pattern=ball' \
    >"$work/lines" 2>"$work/said" &
  local id=$!
  until [ "$(wc -l <"$work/lines")" -ge 40 ]; do
    kill -0 "$id" 2>/dev/null || fail "the stream ended: $(cat "$work/said")"
    sleep 0.2
  done
  STORE=s3://states/hall pipelines/examples/fleet/handover.sh stop "$id" 2>>"$work/said"
  wait "$id"
  python3 -c 'import json, sys; x = [json.loads(l)["step"] for l in sys.stdin]; print(x[0], x[-1])' <"$work/lines"
}
read -r first last < <(turn)
[ "$first" = 9 ] || fail "the first stream began with step $first"
read -r next end < <(turn)
grep -q 'going on from camera.state' "$work/said" || fail "$(cat "$work/said")"
[ "$next" = $((last + 1)) ] || fail "step $next after $last"
echo "machine A: steps $first to $last; machine B: $next to $end"

ssm state get s3://states/hall/camera.state "$work/got"
"$venv/bin/python" -c '
import boto3, sys
body = boto3.client("s3").get_object(Bucket="states", Key="hall/camera.state")["Body"].read()
sys.exit(body != open(sys.argv[1], "rb").read())' "$work/got" || fail "another client reads something else"

kill "$server"
wait "$server" 2>/dev/null || true
server=
code=0
begin=$SECONDS
ssm state get s3://states/hall/camera.state "$work/none" 2>"$work/said" || code=$?
[ "$code" = 1 ] || fail "a store that is away ends with $code"
echo "store away: code $code after $((SECONDS - begin)) s, $(cat "$work/said")"
echo PASS
