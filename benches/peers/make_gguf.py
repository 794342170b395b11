"""Writes a GPT-2 checkpoint as a GGUF file for llama.cpp, without the detour over its converter, which is not in its package.
usage: make_gguf.py MODEL OUT BF16|Q8_0"""
import json, sys

import gguf, numpy as np
from safetensors.numpy import load_file

source, out, kind = sys.argv[1:4]
config = json.load(open(f"{source}/config.json"))
weights = {name.removeprefix("transformer."): tensor for name, tensor in load_file(f"{source}/model.safetensors").items()}
kind_id = getattr(gguf.GGMLQuantizationType, kind)

writer = gguf.GGUFWriter(out, "gpt2")
writer.add_block_count(config["n_layer"])
writer.add_context_length(config["n_positions"])
writer.add_embedding_length(config["n_embd"])
writer.add_feed_forward_length(4 * config["n_embd"])
writer.add_head_count(config["n_head"])
writer.add_layer_norm_eps(config["layer_norm_epsilon"])
writer.add_file_type({"Q8_0": 7, "BF16": 32}[kind])

vocabulary = json.load(open(f"{source}/vocab.json", encoding="utf-8"))
tokens = sorted(vocabulary, key=vocabulary.get)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list(tokens)
writer.add_token_types([1] * (len(tokens) - 1) + [3])
merges = open(f"{source}/merges.txt", encoding="utf-8").read().split("\n")[1:]
writer.add_token_merges([line for line in merges if line])
writer.add_bos_token_id(len(tokens) - 1)
writer.add_eos_token_id(len(tokens) - 1)


def add(name, tensor, is_matrix):
    tensor = np.ascontiguousarray(tensor.astype(np.float32))
    if is_matrix:
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind_id), raw_dtype=kind_id)
    else:
        writer.add_tensor(name, tensor)


add("token_embd.weight", weights["wte.weight"], True)
add("output.weight", weights["wte.weight"], True)
add("position_embd.weight", weights["wpe.weight"], False)
add("output_norm.weight", weights["ln_f.weight"], False)
add("output_norm.bias", weights["ln_f.bias"], False)
names = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
         "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
for layer in range(config["n_layer"]):
    for ours, theirs in names.items():
        weight, bias = weights[f"h.{layer}.{ours}.weight"], weights[f"h.{layer}.{ours}.bias"]
        is_matrix = not ours.startswith("ln")
        add(f"blk.{layer}.{theirs}.weight", weight.T if is_matrix else weight, is_matrix)
        add(f"blk.{layer}.{theirs}.bias", bias, False)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
