#!/usr/bin/env bash
# The real `vllm bench serve` against an OpenAI-compatible server; fails unless every request succeeded.
#
#   bench-serve.sh http://127.0.0.1:8868 [further flags of vllm bench serve]
#
# env: BACKEND=openai|openai-chat N=32 CONC=8 (none: no limit) RATE=inf IN=128 OUT=32 SEED=0 NAME=tiny
#      TOKENIZER=$LAB/tiny-tokenizer DATASET=random|prefix_repetition|sonnet|custom (CUSTOM=file.jsonl) VERBOSE=1
#      sonnet: the client has no such data set any more; sonnets.py makes its prompts, IN tokens long
set -euo pipefail
. "$(dirname "$0")/lab.sh"
URL=${1:?base url, e.g. http://127.0.0.1:8868}
shift
BACKEND=${BACKEND:-openai} N=${N:-32} CONC=${CONC:-8} RATE=${RATE:-inf} IN=${IN:-128} OUT=${OUT:-32} DATASET=${DATASET:-random}
"$HERE/install.sh" client
work=$(mktemp -d "$RT/bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
flags=(--backend "$BACKEND" --base-url "$URL" --model "${NAME:-tiny}" --tokenizer "${TOKENIZER:-$LAB/tiny-tokenizer}"
  --num-prompts "$N" --request-rate "$RATE" --seed "${SEED:-0}" --temperature 0 --ignore-eos
  --percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,99)
[ "$CONC" = none ] || flags+=(--max-concurrency "$CONC")
case $BACKEND in openai-chat) flags+=(--endpoint /v1/chat/completions) ;; *) flags+=(--endpoint /v1/completions) ;; esac
if [ "$DATASET" = sonnet ]; then
  CUSTOM=$work/sonnet.jsonl
  "$CLIENT_PY" "$HERE/sonnets.py" "${TOKENIZER:-$LAB/tiny-tokenizer}" "$N" "$IN" 200 "${SEED:-0}" >"$CUSTOM"
fi
case $DATASET in
  random) flags+=(--dataset-name random --random-input-len "$IN" --random-output-len "$OUT") ;;
  prefix_repetition) flags+=(--dataset-name prefix_repetition --prefix-repetition-prefix-len 64 --prefix-repetition-suffix-len "$IN"
    --prefix-repetition-num-prefixes 4 --prefix-repetition-output-len "$OUT") ;;
  custom | sonnet) flags+=(--dataset-name custom --dataset-path "${CUSTOM:?jsonl with prompt}" --custom-output-len "$OUT" --skip-chat-template) ;;
  *) echo "DATASET=$DATASET: not one of those above" >&2 && exit 2 ;;
esac
if ! HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 "$CLIENT_PY" "$CLIENT/bench.py" "${flags[@]}" \
  --save-result --result-dir "$work" --result-filename result.json "$@" >"$work/log" 2>&1; then
  tail -20 "$work/log"
  exit 1
fi
[ -n "${VERBOSE:-}" ] && cat "$work/log"
"$CLIENT_PY" - "$work/result.json" "$N" "$OUT" "$BACKEND" "$CONC" "$RATE" <<'P'
import json, sys
r, n, out = json.load(open(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
print(f"{sys.argv[4]}, concurrency {sys.argv[5]}, rate {sys.argv[6]}/s: {r['completed']} ok, {r['failed']} failed, {r['duration']:.1f} s, "
      f"{r['request_throughput']:.1f} requests/s, tokens {r['total_input_tokens']} in {r['total_output_tokens']} out, "
      f"TTFT p50 {r['p50_ttft_ms']:.1f} p99 {r['p99_ttft_ms']:.1f} ms, ITL p50 {r['p50_itl_ms']:.1f} p99 {r['p99_itl_ms']:.1f} ms, "
      f"E2E p99 {r['p99_e2el_ms']:.0f} ms")
# The client calls a truncated answer a success: count the tokens, too.
sys.exit(not (r["completed"] == n and r["failed"] == 0 and r["total_output_tokens"] == n * out))
P
