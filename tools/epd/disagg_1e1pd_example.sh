#!/usr/bin/env bash
# One encode engine, one that does prefill and decode, pdrelay before them, a benchmark, one local image.
#
#   As disagg_1e1p1d_example.sh, with PREFILL_DECODE_PORT, GPU_PD and GPU_MEMORY_UTILIZATION_PD in place of P's and D's.
set -u
. "$(dirname "$0")/start.sh"
prepare
if [ "$ENGINE" = sim ]; then
  run engines "$BIN/pdsim" --encode 1 --both 1 --ports "$ENCODE_PORT,$PREFILL_DECODE_PORT" \
    --model "$MODEL" --local-media --decode-tick-ms 5
  wait_for engines "$PREFILL_DECODE_PORT"
else
  vllm_engine encode "$GPU_E" "$ENCODE_PORT" "$GPU_MEMORY_UTILIZATION_E" --enforce-eager --no-enable-prefix-caching \
    --ec-transfer-config "$(ec producer)"
  wait_for encode "$ENCODE_PORT"
  vllm_engine prefill-decode "$GPU_PD" "$PREFILL_DECODE_PORT" "$GPU_MEMORY_UTILIZATION_PD" --enforce-eager \
    --ec-transfer-config "$(ec consumer)"
  wait_for prefill-decode "$PREFILL_DECODE_PORT"
fi
proxy --encode-servers-urls "http://127.0.0.1:$ENCODE_PORT" --prefill-servers-urls disable \
  --decode-servers-urls "http://127.0.0.1:$PREFILL_DECODE_PORT"
finish
