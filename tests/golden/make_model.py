#!/usr/bin/env python3
"""A random-weight checkpoint of GPT-2 or nanochat, of real geometry, for measuring speed and memory.

    python3 make_model.py OUT N_LAYER N_HEAD N_EMBD [--dtype bf16] [--vocab 50257] [--positions 1024] [--tokenizer DIR] [--nanochat]

    gpt2 12 12 768 | gpt2-medium 24 16 1024 | gpt2-large 36 20 1280 | gpt2-xl 48 25 1600
    with --nanochat (its newest generation): d12 12 6 768 | d20 20 10 1280

Writes config.json and model.safetensors as save_pretrained would. Needs numpy, and safetensors to check the
result; no torch. Speed does not depend on the values, so they are cut from one buffer of N(0, 0.02), and the
file is written tensor by tensor: memory stays below 400 MB for any size of model. The same arguments give the
same bytes.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open

# A prime, so that the rows of no embedding repeat (equal rows would mean equal logits).
BUFFER_LEN = 16_777_213
DTYPES = {"f32": ("F32", 4, "float32"), "f16": ("F16", 2, "float16"), "bf16": ("BF16", 2, "bfloat16")}
TOKENIZER_FILES = ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]


def tensor_list(layers: int, c: int, vocab: int, positions: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file; Conv1D weights are [in, out]. lm_head is tied to wte."""
    norm = lambda name: [(name + ".weight", (c,)), (name + ".bias", (c,))]
    conv = lambda name, n_in, n_out: [(name + ".weight", (n_in, n_out)), (name + ".bias", (n_out,))]
    tensors = [("wte.weight", (vocab, c)), ("wpe.weight", (positions, c))]
    for i in range(layers):
        h = f"h.{i}."
        tensors += norm(h + "ln_1") + conv(h + "attn.c_attn", c, 3 * c) + conv(h + "attn.c_proj", c, c)
        tensors += norm(h + "ln_2") + conv(h + "mlp.c_fc", c, 4 * c) + conv(h + "mlp.c_proj", 4 * c, c)
    return [("transformer." + name, shape) for name, shape in tensors + norm("ln_f")]


def nanochat_list(layers: int, heads: int, c: int, vocab: int) -> list[tuple[str, tuple[int, ...]]]:
    """The same of nanochat's newest generation; Linear weights are [out, in]."""
    tensors = [("wte.weight", (vocab, c))]
    for i in range(layers):
        h = f"h.{i}."
        tensors += [(f"{h}attn.{name}.weight", (c, c)) for name in ("c_q", "c_k", "c_v", "c_proj")]
        tensors += [(h + "mlp.c_fc.weight", (4 * c, c)), (h + "mlp.c_proj.weight", (c, 4 * c))]
        if i % 2 == (layers - 1) % 2:
            tensors += [(h + "attn.ve_gate.weight", (heads, 12)), (f"value_embeds.{i}.weight", (vocab, c))]
    tensors += [("lm_head.weight", (vocab, c)), ("smear_gate.weight", (1, 24)), ("smear_lambda", (1,))]
    return tensors + [("backout_lambda", (1,)), ("resid_lambdas", (layers,)), ("x0_lambdas", (layers,))]


def nanochat_config(layers: int, heads: int, c: int, vocab: int, positions: int) -> dict:
    short = 128 * -(-positions // 512)
    windows = [positions if i % 4 == 3 or i == layers - 1 else short for i in range(layers)]
    return {
        "model_type": "nanochat_later", "vocab_size": vocab, "max_position_embeddings": positions, "hidden_size": c,
        "intermediate_size": 4 * c, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "rms_norm_eps": 2.0**-23, "final_logit_softcapping": 15.0, "rotary_rounding": "as_computed", "qk_norm_factor": 1.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "residual_lambdas": True,
        "smear_gate_channels": 24, "backout": True, "value_gate_channels": 12, "value_gate_factor": 3.0,
        "attention_windows": windows, "tie_word_embeddings": False,
    }


def to_bytes(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "f32":
        return values.astype("<f4")
    if dtype == "f16":
        return values.astype("<f2")
    # bf16 is the upper half of an f32; round to nearest, ties to even (the values are finite).
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path: Path, tensors, dtype: str, seed: int):
    """u64 header length, JSON header padded to 8 bytes, then the data in header order without gaps."""
    code, width, _ = DTYPES[dtype]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        start, end = end, end + int(np.prod(shape)) * width
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    random = np.random.default_rng(seed).standard_normal(BUFFER_LEN, dtype=np.float32)
    random *= 0.02
    random = to_bytes(random, dtype)
    at = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            left = int(np.prod(shape))
            if name == "resid_lambdas" or ".ln_" in name and name.endswith(".weight"):
                file.write(to_bytes(np.ones(left, np.float32), dtype).data)
                continue
            while left > 0:
                n = min(left, BUFFER_LEN - at)
                file.write(random[at : at + n].data)
                left, at = left - n, (at + n) % BUFFER_LEN
    return end


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("n_layer", type=int)
    parser.add_argument("n_head", type=int)
    parser.add_argument("n_embd", type=int)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files are copied")
    parser.add_argument("--nanochat", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if min(args.n_layer, args.n_head, args.n_embd, args.vocab, args.positions) < 1:
        parser.error("every size must be at least 1")
    if args.n_embd % args.n_head:
        parser.error(f"n_embd {args.n_embd} is not a multiple of n_head {args.n_head}")
    sources = [args.tokenizer / name for name in TOKENIZER_FILES] if args.tokenizer else []
    sources = [path for path in sources if path.is_file()]
    if args.tokenizer and not sources:
        parser.error(f"no tokenizer files in {args.tokenizer}")

    args.out.mkdir(parents=True, exist_ok=True)
    config = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": args.vocab - 1,
        "dtype": DTYPES[args.dtype][2],
        "embd_pdrop": 0.1,
        "eos_token_id": args.vocab - 1,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_embd": args.n_embd,
        "n_head": args.n_head,
        "n_inner": None,
        "n_layer": args.n_layer,
        "n_positions": args.positions,
        "resid_pdrop": 0.1,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": args.vocab,
    }
    tensors = tensor_list(args.n_layer, args.n_embd, args.vocab, args.positions)
    if args.nanochat:
        config = nanochat_config(args.n_layer, args.n_head, args.n_embd, args.vocab, args.positions)
        tensors = nanochat_list(args.n_layer, args.n_head, args.n_embd, args.vocab)
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in sources:
        shutil.copyfile(path, args.out / path.name)

    path = args.out / "model.safetensors"
    size = write_safetensors(path, tensors, args.dtype, args.seed)

    # The library checks the header against the file's length; numpy has no bf16 to read values into.
    with safe_open(path, "np") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert stored == dict(tensors)
    parameters = size // DTYPES[args.dtype][1]
    print(f"{path}: {parameters / 1e6:.1f} M parameters, {size / 1e6:.0f} MB as {args.dtype}", file=sys.stderr)


if __name__ == "__main__":
    main()
