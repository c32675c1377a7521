"""Makes $LAB/tiny-tokenizer (byte-level BPE, 2048 entries) and $LAB/tiny-model (random Llama, 1.3 M parameters).

usage: make_tiny.py LAB [--tokenizer-only]     needs transformers; for the model torch, too
"""

import argparse
import asyncio
import http.client
import inspect
import logging
import subprocess
import sys
import typing

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LAB = sys.argv[1]
ONLY = "--tokenizer-only" in sys.argv
# Text that every Python has.
text = [inspect.getsource(m) for m in (argparse, asyncio.base_events, http.client, logging, typing, subprocess)]
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
bpe.train_from_iterator(
    (line for part in text for line in part.splitlines(True)),
    trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
)
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bpe,
    eos_token="<|endoftext|>",
    bos_token="<|endoftext|>",
    pad_token="<|pad|>",
    additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    model_max_length=32768,
    clean_up_tokenization_spaces=False,
)
tokenizer.chat_template = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
for folder in ["tiny-tokenizer"] + ([] if ONLY else ["tiny-model"]):
    tokenizer.save_pretrained(f"{LAB}/{folder}")
print("tokenizer entries", len(tokenizer))
if not ONLY:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        initializer_range=0.15,  # wide, so that the next token is never a close call
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=3,
        torch_dtype="float32",
    )
    model = LlamaForCausalLM(config).float().eval()
    model.generation_config.eos_token_id = 0
    model.save_pretrained(f"{LAB}/tiny-model", safe_serialization=True)
    print("model parameters", sum(p.numel() for p in model.parameters()))
