# Sourced by the scripts here: starts encode, prefill and decode engines and the proxy before them, waits, benchmarks,
# asks about one local image, and stops all that it started. The variables are those of vLLM's own examples.
. "$(dirname "${BASH_SOURCE[0]}")/../real-engine/lab.sh"
EPD=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ENGINE=${ENGINE:-sim}
MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}
LOG_PATH=${LOG_PATH:-./logs}
ENCODE_PORT=${ENCODE_PORT:-19534} PREFILL_PORT=${PREFILL_PORT:-19535} DECODE_PORT=${DECODE_PORT:-19536}
PREFILL_DECODE_PORT=${PREFILL_DECODE_PORT:-19535}
PROXY_PORT=${PROXY_PORT:-${ENDPOINT_PORT:-10001}}
DEVICE_PLATFORM=${DEVICE_PLATFORM:-cuda}
case $DEVICE_PLATFORM in
  cuda) AFFINITY=CUDA_VISIBLE_DEVICES ;;
  rocm) AFFINITY=HIP_VISIBLE_DEVICES ;;
  xpu) AFFINITY=ZE_AFFINITY_MASK ;;
  npu) AFFINITY=ASCEND_RT_VISIBLE_DEVICES ;;
  *) AFFINITY='' ;;
esac
DEVICE_AFFINITY_ENV=${DEVICE_AFFINITY_ENV:-$AFFINITY}
GPU_E=${GPU_E:-0} GPU_P=${GPU_P:-1} GPU_D=${GPU_D:-2} GPU_PD=${GPU_PD:-1}
GPU_MEMORY_UTILIZATION_E=${GPU_MEMORY_UTILIZATION_E:-0.01} GPU_MEMORY_UTILIZATION_P=${GPU_MEMORY_UTILIZATION_P:-0.7}
GPU_MEMORY_UTILIZATION_D=${GPU_MEMORY_UTILIZATION_D:-0.7} GPU_MEMORY_UTILIZATION_PD=${GPU_MEMORY_UTILIZATION_PD:-0.7}
MAX_NUM_SEQS=${MAX_NUM_SEQS:-128} MAX_MODEL_LEN=${MAX_MODEL_LEN:-32768}
EC_SHARED_STORAGE_PATH=${EC_SHARED_STORAGE_PATH:-/tmp/ec_cache}
TIMEOUT_SECONDS=${TIMEOUT_SECONDS:-12000} NUM_PROMPTS=${NUM_PROMPTS:-100}
URL=http://127.0.0.1:$PROXY_PORT
PIDS=()

cleanup() {
  local pid
  for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null; done
  for pid in "${PIDS[@]}"; do wait "$pid" 2>/dev/null; done
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
  echo "$*" >&2
  exit 1
}

# run NAME COMMAND...: in the background, with a log of its own.
run() {
  local name=$1
  shift
  "$@" >"$LOG_PATH/$name.log" 2>&1 </dev/null &
  PIDS+=($!)
}

# wait_for NAME PORT: until it is healthy.
wait_for() {
  wait_http "http://127.0.0.1:$2/health" "${PIDS[-1]}" "$TIMEOUT_SECONDS" && return
  tail -20 "$LOG_PATH/$1.log" >&2
  fail "$1 did not become healthy on port $2"
}

# vllm NAME GPU PORT SHARE FLAGS...
vllm_engine() {
  local name=$1 gpu=$2 port=$3 share=$4
  shift 4
  local place=()
  [ -n "$DEVICE_AFFINITY_ENV" ] && place=("$DEVICE_AFFINITY_ENV=$gpu")
  run "$name" env "${place[@]}" "$VLLM" serve "$MODEL" --port "$port" --gpu-memory-utilization "$share" \
    --enable-request-id-headers --max-num-seqs "$MAX_NUM_SEQS" --max-model-len "$MAX_MODEL_LEN" \
    --allowed-local-media-path "$MEDIA" "$@"
}

ec() { # producer or consumer
  local extra='"ec_connector_extra_config":{"shared_storage_path":"'$EC_SHARED_STORAGE_PATH'"}'
  echo '{"ec_connector":"ECExampleConnector","ec_role":"ec_'"$1"'",'"$extra"'}'
}

kv() { # producer or consumer
  echo '{"kv_connector":"NixlConnector","kv_role":"kv_'"$1"'"}'
}

prepare() {
  mkdir -p "$LOG_PATH"
  LOG_PATH=$(cd "$LOG_PATH" && pwd)
  MEDIA=$LOG_PATH/media
  mkdir -p "$MEDIA"
  # A picture of one pixel.
  base64 -d >"$MEDIA/dot.png" <<'P'
iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==
P
  case $ENGINE in
    sim) release_binaries pdrelay pdsim pdload || fail "nothing was built" ;;
    vllm)
      VLLM=${VLLM:-$(command -v vllm || echo "$ENGINE_VENV/bin/vllm")}
      [ -x "$VLLM" ] || fail "vllm is not installed: put it on the PATH, or name it in VLLM"
      release_binaries pdrelay || fail "nothing was built"
      rm -rf "$EC_SHARED_STORAGE_PATH"
      mkdir -p "$EC_SHARED_STORAGE_PATH"
      ;;
    *) fail "ENGINE is sim or vllm, not $ENGINE" ;;
  esac
}

# proxy FLAGS...: with the old program's command line.
proxy() {
  run proxy "$BIN/pdrelay" epd --host 127.0.0.1 --port "$PROXY_PORT" "$@"
  wait_for proxy "$PROXY_PORT"
}

benchmark() {
  case $ENGINE in
    sim)
      check "pdload, $NUM_PROMPTS chats with an image" "$BIN/pdload" --url "$URL" --endpoint chat --model "$MODEL" \
        --image-bytes 65536 --requests "$NUM_PROMPTS" --concurrency 16
      ;;
    vllm)
      check "vllm bench serve, $NUM_PROMPTS chats with an image" "$VLLM" bench serve --backend openai-chat \
        --endpoint /v1/chat/completions --base-url "$URL" --model "$MODEL" --num-prompts "$NUM_PROMPTS" --seed 0 \
        --dataset-name random-mm --random-input-len 128 --random-output-len 64
      ;;
  esac
}

local_image() {
  local body
  body='{"model":"'$MODEL'","max_tokens":16,"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file://'$MEDIA'/dot.png"}},{"type":"text","text":"What is in this picture?"}]}]}'
  check "one local image" curl -sS --fail-with-body -m 600 "$URL/v1/chat/completions" -H 'content-type: application/json' -d "$body"
  echo
}

finish() {
  benchmark
  local_image
  if [ "$ENGINE" = sim ]; then
    cleanup
    PIDS=()
    grep '^ledger:\|^violation:' "$LOG_PATH/engines.log"
    grep -q ' violations 0 ' "$LOG_PATH/engines.log"
    verdict "the simulator saw nothing wrong" $?
  fi
  exit $((FAILED > 0))
}
