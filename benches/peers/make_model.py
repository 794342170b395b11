"""Writes a GPT-2 checkpoint of random weights in Hugging Face's layout, with GPT-2's tokenizer: speed does not depend on the weights.
usage: make_model.py OUT n_layer n_head n_embd      (124m: 12 12 768, medium: 24 16 1024, large: 36 20 1280, xl: 48 25 1600)"""
import pathlib, shutil, sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

out, layers, heads, width = sys.argv[1], *map(int, sys.argv[2:5])
torch.manual_seed(1234)
GPT2LMHeadModel(GPT2Config(n_layer=layers, n_head=heads, n_embd=width)).eval().save_pretrained(out)
tokenizer = pathlib.Path(__file__).resolve().parents[2] / "tests/data/gpt2-tokenizer"
for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
    shutil.copy(tokenizer / name, out)
