#!/usr/bin/env bash
# One encode, one prefill and one decode engine, pdrelay before them, a benchmark, one local image.
#
#   ENGINE=sim (default) or vllm; the other variables, with their defaults, are in start.sh: MODEL LOG_PATH ENCODE_PORT
#   PREFILL_PORT DECODE_PORT PROXY_PORT (or ENDPOINT_PORT) GPU_E GPU_P GPU_D DEVICE_PLATFORM DEVICE_AFFINITY_ENV
#   EC_SHARED_STORAGE_PATH TIMEOUT_SECONDS NUM_PROMPTS GPU_MEMORY_UTILIZATION_E, _P, _D MAX_NUM_SEQS MAX_MODEL_LEN
#   BIN: a folder with the programs (default: built first)
set -u
. "$(dirname "$0")/start.sh"
prepare
if [ "$ENGINE" = sim ]; then
  run engines "$BIN/pdsim" --encode 1 --prefill 1 --decode 1 --ports "$ENCODE_PORT,$PREFILL_PORT,$DECODE_PORT" \
    --model "$MODEL" --local-media --decode-tick-ms 5
  wait_for engines "$DECODE_PORT"
else
  vllm_engine encode "$GPU_E" "$ENCODE_PORT" "$GPU_MEMORY_UTILIZATION_E" --enforce-eager --no-enable-prefix-caching \
    --ec-transfer-config "$(ec producer)"
  wait_for encode "$ENCODE_PORT"
  export VLLM_NIXL_SIDE_CHANNEL_PORT=5559
  vllm_engine prefill "$GPU_P" "$PREFILL_PORT" "$GPU_MEMORY_UTILIZATION_P" --enforce-eager \
    --ec-transfer-config "$(ec consumer)" --kv-transfer-config "$(kv producer)"
  wait_for prefill "$PREFILL_PORT"
  export VLLM_NIXL_SIDE_CHANNEL_PORT=6000
  vllm_engine decode "$GPU_D" "$DECODE_PORT" "$GPU_MEMORY_UTILIZATION_D" --enforce-eager \
    --kv-transfer-config "$(kv consumer)"
  wait_for decode "$DECODE_PORT"
fi
proxy --encode-servers-urls "http://127.0.0.1:$ENCODE_PORT" --prefill-servers-urls "http://127.0.0.1:$PREFILL_PORT" \
  --decode-servers-urls "http://127.0.0.1:$DECODE_PORT"
finish
