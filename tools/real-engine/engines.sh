#!/usr/bin/env bash
# Real vLLM engines: prefill and decode over the NixlConnector, and a single server to compare with.
#
#   engines.sh up [TAG...]      start and wait until healthy; TAG: ref, p0, p1, ..., d0, d1, ... (default: ref p0 d0)
#   engines.sh down [TAG...]    stop (default: all that run)
#   engines.sh crash TAG        SIGKILL, as if the machine died
#   engines.sh status
#
# env: REF_PORT=24001 P_PORT=24010 D_PORT=24020 (tag pN: P_PORT+N)   SIDE=25500: NIXL side channels P SIDE+N, D SIDE+50+N
#      MODEL=$LAB/tiny-model NAME=tiny MAXLEN=4096   VLLM=$LAB/venv-vllm/bin/vllm
#      ENGINE_FLAGS: replaces the flags for a CPU    EXTRA: further flags
#      CONNECTOR=nixl|nixlpush|example|none   KV_DEVICE=cpu   LOADFAIL=fail|recompute   UCX_TLS=tcp
#      KV_ROLE: kv_producer and kv_consumer unless set       BIDIR=1 with KV_ROLE=kv_both: D offers its blocks, too
# Logs, ports and pids: $LAB/rt/TAG.log (of the one before: .log.before), .port, .pid
set -u
. "$(dirname "$0")/lab.sh"
VLLM=${VLLM:-$ENGINE_VENV/bin/vllm} MODEL=${MODEL:-$LAB/tiny-model} NAME=${NAME:-tiny} MAXLEN=${MAXLEN:-4096}
REF_PORT=${REF_PORT:-24001} P_PORT=${P_PORT:-24010} D_PORT=${D_PORT:-24020} SIDE=${SIDE:-25500}
CONNECTOR=${CONNECTOR:-nixl} KV_DEVICE=${KV_DEVICE:-cpu} LOADFAIL=${LOADFAIL:-fail} UCX_TLS=${UCX_TLS:-tcp}
ENGINE_FLAGS=${ENGINE_FLAGS:---dtype float32 --enforce-eager --max-num-seqs 64 --kv-cache-memory-bytes 134217728}

transfer() { # role
  local more=''
  [ -n "${BIDIR:-}" ] && more=',"kv_connector_extra_config":{"bidirectional_kv_xfer":true}'
  case $CONNECTOR in
    nixl) echo '{"kv_connector":"NixlConnector","kv_role":"'"${KV_ROLE:-$1}"'","kv_buffer_device":"'"$KV_DEVICE"'","kv_load_failure_policy":"'"$LOADFAIL"'"'"$more"'}' ;;
    nixlpush) echo '{"kv_connector":"NixlPushConnector","kv_role":"'"${KV_ROLE:-$1}"'","kv_buffer_device":"'"$KV_DEVICE"'"}' ;;
    example) echo '{"kv_connector":"ExampleConnector","kv_role":"kv_both","kv_connector_extra_config":{"shared_storage_path":"'"$RT"'/kvshare"}}' ;;
  esac
}

start() { # tag
  local tag=$1 port side=$SIDE kv=()
  case $tag in
    ref) port=$REF_PORT ;;
    p*) port=$((P_PORT + ${tag#p})) side=$((SIDE + ${tag#p})) ;;
    d*) port=$((D_PORT + ${tag#d})) side=$((SIDE + 50 + ${tag#d})) ;;
    *) echo "unknown engine $tag" >&2; return 1 ;;
  esac
  if [ "$tag" != ref ] && [ "$CONNECTOR" != none ]; then
    local role=kv_producer
    [[ $tag == d* ]] && role=kv_consumer
    kv=(--kv-transfer-config "$(transfer $role)")
  fi
  # What the one before it said may explain why it had to die.
  [ -f "$RT/$tag.log" ] && mv "$RT/$tag.log" "$RT/$tag.log.before"
  local calm=''
  [ "$KV_DEVICE" = cpu ] && calm=$HERE/few-cores${PYTHONPATH:+:$PYTHONPATH}
  # Each engine leads a process group, so that all of it can be stopped.
  setsid env ${calm:+PYTHONPATH="$calm"} HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 PYTHONHASHSEED=0 \
    VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" \
    NIXL_PTHR_DELAY_US="${NIXL_PTHR_DELAY_US:-1000}" UCX_TLS="$UCX_TLS" UCX_NET_DEVICES="${UCX_NET_DEVICES:-lo}" \
    VLLM_NIXL_SIDE_CHANNEL_HOST=127.0.0.1 VLLM_NIXL_SIDE_CHANNEL_PORT="$side" \
    "$VLLM" serve "$MODEL" --served-model-name "$NAME" --host 127.0.0.1 --port "$port" --max-model-len "$MAXLEN" \
    $ENGINE_FLAGS --enable-prompt-tokens-details "${kv[@]}" ${EXTRA:-} >"$RT/$tag.log" 2>&1 </dev/null &
  echo $! >"$RT/$tag.pid"
  echo "$port" >"$RT/$tag.port"
}

wait_up() { # tag, and all that start beside it
  local tag=$1
  wait_http "http://127.0.0.1:$(cat "$RT/$tag.port")/health" "$(cat "$RT/$tag.pid")" "${START_SECONDS:-600}" unpin "$@" && return
  echo "$tag did not start; the end of $RT/$tag.log:" >&2
  tail -15 "$RT/$tag.log" >&2
  return 1
}

# On a CPU, the NixlConnector pins each worker to the last core of its NUMA node. All of them work there, so
# that engines on one machine starve each other and a hand-over may outlast the 30 s for which P holds the KV. They
# do it before they answer /health, and whoever waits for that asks at once: so this is done again and again meanwhile.
unpin() { # tag...
  [ "$KV_DEVICE" = cpu ] && command -v taskset >/dev/null || return 0
  local cores tag pid file
  cores=$(taskset -cp $$ | sed 's/.*: //')
  for tag; do
    for pid in $(pgrep -g "$(cat "$RT/$tag.pid")"); do
      for file in $(grep -Ls "^Cpus_allowed_list:[[:space:]]*$cores\$" /proc/"$pid"/task/*/status); do
        file=${file%/status}
        taskset -cp "$cores" "${file##*/}" >/dev/null 2>&1
      done
    done
  done
  return 0
}

stop() { # tag [signal]
  local pid=$RT/$1.pid group
  [ -f "$pid" ] || return 0
  group=$(cat "$pid")
  rm -f "$pid"
  # A pid file may outlive its process: signal only what is an engine of ours.
  grep -qz -- "$MODEL" "/proc/$group/cmdline" 2>/dev/null || return 0
  if [ "${2:-TERM}" = TERM ]; then
    kill -TERM "$group" 2>/dev/null
    for _ in $(seq 100); do
      kill -0 -- "-$group" 2>/dev/null || return 0
      sleep 0.1
    done
  fi
  kill -KILL -- "-$group" 2>/dev/null
  while kill -0 -- "-$group" 2>/dev/null; do sleep 0.1; done
}

running() {
  local file
  for file in "$RT"/ref.pid "$RT"/[pd][0-9]*.pid; do
    [ -f "$file" ] && basename "$file" .pid
  done
}

command=${1:-up}
shift $(($# > 0))
case $command in
  up)
    tags=(${@:-ref p0 d0})
    began=$SECONDS
    for tag in "${tags[@]}"; do start "$tag" || exit 1; done
    for tag in "${tags[@]}"; do wait_up "$tag" "${tags[@]}" || exit 1; done
    unpin "${tags[@]}"
    echo "engines up after $((SECONDS - began)) s: ${tags[*]}"
    ;;
  down) for tag in ${@:-$(running)}; do stop "$tag"; done ;;
  crash) stop "${1:?tag}" KILL ;;
  status)
    for tag in $(running); do
      port=$(cat "$RT/$tag.port")
      if curl -sf -m 3 -o /dev/null "http://127.0.0.1:$port/health"; then echo "$tag healthy on $port"; else echo "$tag not healthy"; fi
    done
    ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
