#!/usr/bin/env bash
# CPU time per request of pdrelay (two hops, JSON spliced) beside nginx's (one hop, no JSON), interleaved
# in one run over the same simulator; the proxy on one CPU, simulator and load on another. Loopback only.
#
#   benches/one_hop.sh [CONCURRENCY] [SECONDS] [ROUNDS] [stream|staggered]
#
# Needs nginx in PATH (Debian: apt-get install nginx-light) and two CPUs; builds what else it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
C=${1:-64} S=${2:-5} R=${3:-3} MODE=${4:-json}
PROXY_CPU=${PROXY_CPU:-0} LOAD_CPU=${LOAD_CPU:-1} BASE=${BASE:-9100}
command -v nginx >/dev/null || { echo "nginx is not installed"; exit 2; }
cargo build --release --locked --quiet -p pdrelay -p pdsim -p pdload
T=${CARGO_TARGET_DIR:-target}/release
W=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; sleep 0.3; rm -rf "$W"' EXIT
sim=(--prefill 1 --decode 1 --port-base "$BASE" --model dummy)
load=(--no-stream)
case $MODE in
  stream) sim+=(--decode-tick-ms 5); load=(--stream --max-tokens 16) ;;
  staggered) sim+=(--decode-tick-ms 5 --stagger); load=(--stream --max-tokens 16) ;;
esac
cat >"$W/nginx.conf" <<N
worker_processes 1; daemon off; error_log $W/err.log; pid $W/pid; worker_rlimit_nofile 20000;
events { worker_connections 8192; }
http {
  access_log off; keepalive_requests 100000000; client_body_buffer_size 64k;
  client_body_temp_path $W/b; proxy_temp_path $W/p; fastcgi_temp_path $W/f; uwsgi_temp_path $W/u; scgi_temp_path $W/s;
  upstream engine { server 127.0.0.1:$((BASE + 1)); keepalive 1024; keepalive_requests 100000000; }
  server { listen 127.0.0.1:$((BASE + 20)); location / {
    proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; } }
}
N
taskset -c "$LOAD_CPU" "$T/pdsim" "${sim[@]}" >/dev/null & sleep 0.7
taskset -c "$PROXY_CPU" nginx -p "$W" -c "$W/nginx.conf" & nginx=$!
taskset -c "$PROXY_CPU" "$T/pdrelay" serve --handshake nixl --prefill "127.0.0.1:$BASE" --decode "127.0.0.1:$((BASE + 1))" \
  --host 127.0.0.1 --port $((BASE + 21)) --cpus "$PROXY_CPU" --log-level warning 2>/dev/null & pdrelay=$!
sleep 1
for round in $(seq "$R"); do
  for who in nginx:$((BASE + 20)):$nginx pdrelay:$((BASE + 21)):$pdrelay; do
    IFS=: read -r name port pid <<<"$who"
    taskset -c "$LOAD_CPU" "$T/pdload" --url "http://127.0.0.1:$port" --endpoint completions --model dummy \
      --prompt-bytes 1024 "${load[@]}" -c "$C" -s "$S" --warmup-s 1 --cpus "$LOAD_CPU" --pid "$pid" --pid-tree --allow-errors >"$W/out"
    printf '%-8s %s | %s\n' "$name" "$(grep ^cpu "$W/out" | cut -c5-60)" "$(grep ^requests "$W/out" | cut -c10-60)"
  done
done
