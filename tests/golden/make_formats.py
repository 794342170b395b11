#!/usr/bin/env python3
"""One small GPT-2 in every format that checkpoints are found in, and the logits that transformers computes.

    formats/<name>/…             the files of one checkpoint, with a config.json where the format has one
    formats/golden.json          prompt_ids; per case its files and its config (null: the file itself tells its sizes)
    formats/golden.safetensors   "<case>": f32 [T, vocab_size], one row per prompt position

The reference is transformers' GPT2LMHeadModel in f32, eager attention, one thread, from the weights as they are
STORED. Where transformers reads the format itself, it does; for the formats of nanoGPT and the like it is given the
same weights under its own names. Everything comes from a fixed seed. It needs no network.

    python3 -m venv VENV && VENV/bin/pip install -r requirements.txt
    VENV/bin/python make_formats.py [OUT]       # OUT: default the folder of this script
"""

import argparse
import json
import os
import platform
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from make_golden import Spec, random_state_dict

SIZES = dict(n_layer=2, n_head=3, n_embd=12, vocab_size=61, n_positions=32)
PROMPT = [7, 60, 3, 3, 21, 44, 0, 58, 12, 30, 9, 17, 5]
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
ACTIVATIONS = ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu", "quick_gelu", "relu", "relu2", "silu", "swish",
               "tanh"]

cases, logits = [], {}


def config_of(**changes) -> dict:
    return {"model_type": "gpt2", "bos_token_id": 60, "eos_token_id": 60} | SIZES | changes


def weights(seed: int, **changes) -> dict[str, torch.Tensor]:
    """Names without "transformer.", in the layout of Conv1D."""
    # random_state_dict has its own length of the position embedding.
    state = random_state_dict(Spec("", seed, {k: v for k, v in (SIZES | changes).items() if k != "n_positions"}))
    return state | {"wpe.weight": state["wpe.weight"][: SIZES["n_positions"]].clone()}


def masks(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    n = SIZES["n_positions"]
    mask = torch.tril(torch.ones(n, n)).view(1, 1, n, n).to(dtype)
    return {f"h.{i}.attn.bias": mask.clone() for i in range(2)} | {
        f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}


def linear(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As torch's nn.Linear stores matrices: [out, in]."""
    return {k: v.t().contiguous() if k.endswith(CONV1D) else v for k, v in state.items()}


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


@torch.no_grad()
def record(name: str, files: list[str], config: dict | None, state: dict[str, torch.Tensor], reference: dict):
    """`state`: what the reference computes with, in transformers' names; `reference`: its config."""
    model = GPT2LMHeadModel(GPT2Config(**{k: v for k, v in reference.items() if k != "model_type"},
                                       attn_implementation="eager")).eval()
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    logits[name] = model(torch.tensor([PROMPT])).logits[0].contiguous()
    cases.append({"name": name, "files": files, "config": config})


@torch.no_grad()
def record_loaded(name: str, folder: Path, files: list[str], config: dict):
    """For what transformers loads by itself."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    logits[name] = model(torch.tensor([PROMPT])).logits[0].contiguous()
    cases.append({"name": name, "files": [f"{folder.name}/{file}" for file in files], "config": config})


def make(out: Path):
    def folder(name: str, config: dict | None) -> Path:
        path = out / name
        path.mkdir(parents=True, exist_ok=True)
        if config is not None:
            (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        return path

    base = weights(31)
    hugging_face = prefixed("transformer.", base)

    # Split, as save_pretrained does it.
    config = config_of()
    path = folder("split-safetensors", config)
    model = GPT2LMHeadModel(GPT2Config(**{k: v for k, v in config.items() if k != "model_type"}))
    model.transformer.load_state_dict(base)
    model.save_pretrained(path, max_shard_size="12KB")
    (path / "generation_config.json").unlink()
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    record_loaded("split-safetensors", path, sorted(p.name for p in path.glob("*-of-*.safetensors")), config)

    # The same split over pickles.
    path = folder("split-bin", config)
    names = list(hugging_face)
    half = len(names) // 2
    parts = {"pytorch_model-00001-of-00002.bin": names[:half], "pytorch_model-00002-of-00002.bin": names[half:]}
    for file, part in parts.items():
        torch.save({name: hugging_face[name] for name in part}, path / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in base.values())},
             "weight_map": {name: file for file, part in parts.items() for name in part}}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")
    record_loaded("split-bin", path, sorted(parts), config)

    # DialoGPT: f16, mask buffers, the head stored a second time.
    path = folder("dialogpt", config_of(task_specific_params={"conversational": {"max_length": 1000}}))
    f16 = {k: v.half() for k, v in weights(32).items()}
    stored = prefixed("transformer.", f16 | masks(torch.uint8)) | {"lm_head.weight": f16["wte.weight"].clone()}
    torch.save(stored, path / "pytorch_model.bin")
    record_loaded("dialogpt", path, ["pytorch_model.bin"], config)

    # Before torch 1.6: bare names, masks, and tensors that are views into one storage.
    path = folder("legacy", config)
    flat = torch.cat([tensor.reshape(-1) for tensor in base.values()])
    views, at = {}, 0
    for name, tensor in base.items():
        views[name] = flat[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    torch.save(views | masks(torch.uint8), path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    record("legacy", ["legacy/pytorch_model.bin"], config, hugging_face, config)

    # nanoGPT: compiled, Linear, no biases at all, a padded vocabulary, with its optimizer.
    folder("nanogpt", None)
    nano = {k: v for k, v in weights(33, vocab_size=64).items() if not k.endswith("bias")}
    state = prefixed("_orig_mod.transformer.", linear(nano)) | {"_orig_mod.lm_head.weight": nano["wte.weight"]}
    one = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.AdamW([one], lr=1e-3)
    one.sum().backward()
    optimizer.step()
    arguments = {"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 32, "bias": False, "vocab_size": 64,
                 "dropout": 0.0}
    torch.save({"model": state, "optimizer": optimizer.state_dict(), "model_args": arguments, "iter_num": 5,
                "best_val_loss": torch.tensor(3.25), "config": {"out_dir": "out", "learning_rate": 6e-4}},
               out / "nanogpt" / "ckpt.pt")
    zeros = {k: torch.zeros_like(v) for k, v in weights(33, vocab_size=64).items() if k.endswith("bias")}
    nano_config = config_of(vocab_size=64, activation_function="gelu")
    record("nanogpt", ["nanogpt/ckpt.pt"], None, prefixed("transformer.", nano | zeros), nano_config)

    # The Python NanoInfer: sizes under `config`, Linear, masks.
    folder("nanoinfer", None)
    plain = weights(34)
    settings = {"vocab_size": 61, "n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 32, "dropout": 0.1, "bias": True}
    state = prefixed("transformer.", linear(plain) | masks(torch.float32)) | {"lm_head.weight": plain["wte.weight"]}
    torch.save({"model": state, "config": settings, "tokenizer_path": "tokenizer.json"}, out / "nanoinfer" / "model.pt")
    record("nanoinfer", ["nanoinfer/model.pt"], None, prefixed("transformer.", plain),
           config_of(activation_function="gelu"))

    # A bare state dict in bf16, of a data-parallel wrapper, of Parameters.
    path = folder("bare-bf16", config)
    bf16 = {k: torch.nn.Parameter(v.bfloat16()) for k, v in weights(35).items()}
    torch.save(prefixed("module.transformer.", bf16), path / "model.pt")
    record("bare-bf16", ["bare-bf16/model.pt"], config, prefixed("transformer.", bf16), config)

    # Tensors that are not contiguous, under a later pickle protocol.
    path = folder("strided", config)
    strided = {k: v.t().contiguous().t() if v.dim() == 2 else torch.stack([v, v], 1)[:, 0] for k, v in base.items()}
    assert all(not v.is_contiguous() for v in strided.values())
    torch.save(strided, path / "pytorch_model.bin", pickle_protocol=4)
    record("strided", ["strided/pytorch_model.bin"], config, hugging_face, config)

    # A head of its own. transformers 5 uses it also where the configuration says that it is tied.
    for name, tied in [("untied", False), ("untied-against-config", True)]:
        config = config_of(tie_word_embeddings=tied)
        path = folder(name, config)
        head = torch.from_numpy(np.random.default_rng(36).normal(0, 0.3, (61, 12)).astype(np.float32))
        save_file(hugging_face | {"lm_head.weight": head}, path / "model.safetensors", {"format": "pt"})
        record_loaded(name, path, ["model.safetensors"], config)
    (out / "untied-against-config" / "model.safetensors").unlink()
    cases[-1]["files"] = ["untied/model.safetensors"]
    assert torch.equal(logits["untied"], logits["untied-against-config"])

    # Configurations, over the weights of split-safetensors.
    files = cases[0]["files"]
    variants = {f"activation-{name}": dict(activation_function=name) for name in ACTIVATIONS}
    variants["codeparrot"] = dict(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)
    variants["cerebras"] = dict(activation_function="gelu", scale_attn_weights=True, n_inner=48)
    variants["unscaled"] = dict(scale_attn_weights=False)
    variants["epsilon"] = dict(layer_norm_epsilon=1e-2)
    for name, changes in variants.items():
        record(name, files, config_of(**changes), hugging_face, config_of(**changes))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    out = parser.parse_args().out / "formats"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    make(out)
    (out / "untied-against-config" / "config.json").unlink()
    (out / "untied-against-config").rmdir()
    save_file(logits, out / "golden.safetensors")
    head = {"made_by": "make_formats.py",
            "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0],
                         "transformers": transformers.__version__, "numpy": np.__version__},
            "prompt_ids": PROMPT}
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    text = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in head.items())
    (out / "golden.json").write_text("{\n" + text + ',\n"cases": [\n' + lines + "\n]\n}\n")
    for path in out.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    print(f"{len(cases)} cases, {sum(p.stat().st_size for p in out.rglob('*') if p.is_file())} bytes")


if __name__ == "__main__":
    main()
