#!/usr/bin/env python3
"""Golden data of the Llama family: small random checkpoints as transformers writes them, and what it makes of each.

The folders are as those of make_golden.py, with a few more fields in golden.json:

    tokens               ids that the tokenizer has; rows of the embedding behind them are never drawn
    other_config         the same configuration as the other transformers writes it (4: rope_theta, rope_scaling; 5: rope_parameters)
    exact_angles_move    how far the logits move where rotary angles are computed in f64, which no implementation does

`long` is one text of 30,050 tokens: its `prompt_ids` repeated to `prompt_length`, with logits of the last rows only.

The reference runs in f32, eager attention, one thread, from the weights as they are STORED. Its error is measured against the
equations in f64 in this file. Everything comes from fixed seeds, no network is needed.

    python3 -m venv VENV && VENV/bin/pip install -r requirements.txt
    VENV/bin/python make_families.py [OUT]      # OUT: default the folder of this script
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from make_golden import (EOT, MIN_MARGIN, TOKENIZER_TEXTS, AnotherSeed, lines_json, made_by, main, make_tokenizer, run_case, text_of_length,
                         tokenizer_cases, train_bpe, write_text)

NEW_TOKENS = 24
# One, two, around a KV block of 16, and several blocks.
PROMPT_LENGTHS = [1, 2, 16, 17, 40]
LONG, LONG_PERIOD, LONG_ROWS, CHUNK = 30_050, 997, 8, 1024


@dataclass
class Spec:
    """One model. `config` is in the form of transformers 5, less what it shares with all."""

    name: str
    seed: int
    tokens: int
    config: dict
    dtype: torch.dtype = torch.float32
    old_config: bool = False  # config.json as transformers 4 writes it
    files: str = "whole"  # or "shards" of safetensors, or "pickle"
    ends: list[int] = field(default_factory=list)  # more ends of text, which only generation_config.json names
    score_std: float = 2.0  # of attention scores


def default(theta: float) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


SPECS = [
    # As SmolLM2-135M: on 2 ranks 5 + 4 query heads, the KV head between them on both. FFN blocks 64 + 64 + 8.
    Spec("llama-9-3", 3, 307, dict(
        model_type="llama", num_hidden_layers=2, hidden_size=72, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=136, tie_word_embeddings=True, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters=default(1e5)), old_config=True),
    # Every bias there can be, heads of 6, several files. Of the three frequencies one keeps its pace, one lies between, one slows down.
    Spec("llama3-15-5", 3, 301, dict(
        model_type="llama", num_hidden_layers=2, hidden_size=90, num_attention_heads=15, num_key_value_heads=5,
        intermediate_size=150, tie_word_embeddings=False, max_position_embeddings=1024, rms_norm_eps=1e-5,
        attention_bias=True, mlp_bias=True,
        rope_parameters={"rope_type": "llama3", "rope_theta": 1e3, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 128}),
         dtype=torch.bfloat16, files="shards", ends=[298, 299]),
    # As Qwen2.5-0.5B: biases on q, k, v alone; the embedding has 19 rows more than the tokenizer.
    Spec("qwen2-14-2", 1, 301, dict(
        model_type="qwen2", num_hidden_layers=2, hidden_size=112, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=100, vocab_size=320, tie_word_embeddings=True, max_position_embeddings=32768, rms_norm_eps=1e-6,
        rope_parameters=default(1e6)), dtype=torch.bfloat16, old_config=True),
    # As Qwen3-0.6B: heads wider than width / heads, norms of queries and keys. One KV head, which every rank holds.
    Spec("qwen3-5-1", 2, 307, dict(
        model_type="qwen3", num_hidden_layers=3, hidden_size=48, num_attention_heads=5, num_key_value_heads=1, head_dim=16,
        intermediate_size=112, tie_word_embeddings=True, max_position_embeddings=40960, rms_norm_eps=1e-6,
        rope_parameters=default(1e6)), dtype=torch.bfloat16),
    # As Mistral without a window: heads narrower than width / heads, a pickle of f16; linear scaling in its oldest spelling.
    Spec("mistral-8-2", 9, 289, dict(
        model_type="mistral", num_hidden_layers=2, hidden_size=96, num_attention_heads=8, num_key_value_heads=2, head_dim=10,
        intermediate_size=120, tie_word_embeddings=False, max_position_embeddings=256, rms_norm_eps=1e-5, sliding_window=None,
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}),
         dtype=torch.float16, old_config=True, files="pickle"),
    # Texts longer than the 32 positions of before; the range of frequencies between slow and fast is not cut to whole ones.
    Spec("llama-yarn", 6, 307, dict(
        model_type="llama", num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=128, tie_word_embeddings=True, max_position_embeddings=128, rms_norm_eps=1e-5, hidden_act="gelu",
        rope_parameters={"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5,
                         "truncate": False, "original_max_position_embeddings": 32})),
    # Positions where an f32 angle is coarse, and attention sharp enough to show it: angles in f64, or frequencies rounded once instead
    # of thrice, move its logits by more than the tests allow.
    Spec("long", 1, 271, dict(
        model_type="llama", num_hidden_layers=1, hidden_size=24, num_attention_heads=3, num_key_value_heads=1,
        intermediate_size=40, tie_word_embeddings=True, max_position_embeddings=65536, rms_norm_eps=1e-5,
        rope_parameters=default(1e5)), score_std=10.0),
]


# ---------------------------------------------------------------------------------------------- weights


def head_dim(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def random_weights(spec: Spec, config) -> dict[str, torch.Tensor]:
    """As make_golden.random_state_dict: layer outputs as large as the residual
    stream, every bias and gain away from its neutral value. Padding rows of the embedding are large, and would often be drawn."""
    rng = np.random.default_rng(spec.seed)
    model = AutoModelForCausalLM.from_config(config)
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads * head_dim(config)
    std = {"embed_tokens": 0.3, "lm_head": 0.3, "q_proj": (spec.score_std / width) ** 0.5, "k_proj": (spec.score_std / width) ** 0.5,
           "v_proj": (2 / width) ** 0.5, "o_proj": (1 / heads) ** 0.5, "gate_proj": (1.5 / width) ** 0.5,
           "up_proj": (1.5 / width) ** 0.5, "down_proj": (1 / inner) ** 0.5}
    weights = {}
    for name, tensor in model.state_dict().items():
        kind = name.split(".")[-2]
        if name.endswith("bias"):
            values = rng.uniform(0.05, 0.3, tensor.shape) * rng.choice([-1.0, 1.0], tensor.shape)
        elif kind.endswith("norm"):
            values = rng.normal(1.4 if kind in ("q_norm", "k_norm") else 1.0, 0.2, tensor.shape)
        else:
            values = rng.normal(0, std[kind], tensor.shape)
        if kind == "embed_tokens":
            values[spec.tokens:] *= 2
        weights[name] = torch.from_numpy(values).to(spec.dtype)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def old_form(config: dict) -> dict:
    """A configuration as transformers 4 writes it."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    rope = dict(config["rope_parameters"])
    old |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": config["dtype"], "transformers_version": "4.47.0"}
    kind = rope.pop("rope_type")
    # Of the oldest kinds the oldest spelling.
    spelled = {"type" if kind in ("linear", "yarn") else "rope_type": kind}
    old["rope_scaling"] = None if kind == "default" else rope | spelled
    if old.get("head_dim") == old["hidden_size"] // old["num_attention_heads"]:
        del old["head_dim"]
    return dict(sorted(old.items()))


def write_checkpoint(spec: Spec, folder: Path) -> dict:
    """Returns the configuration in the form that is not written."""
    eos = spec.tokens - 1
    settings = {"vocab_size": spec.tokens, "bos_token_id": eos, "eos_token_id": eos} | spec.config
    config = AutoConfig.for_model(**settings)
    config.dtype = spec.dtype
    model = AutoModelForCausalLM.from_config(config).to(spec.dtype)
    weights = random_weights(spec, config)
    model.load_state_dict(weights)
    model.generation_config.eos_token_id = [eos, *spec.ends] if spec.ends else eos
    model.save_pretrained(folder, max_shard_size="120KB" if spec.files == "shards" else "1GB")
    if spec.files == "pickle":
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    new = json.loads((folder / "config.json").read_text())
    old = old_form(new)
    if spec.old_config:
        write_text(folder / "config.json", json.dumps(old, indent=2) + "\n")
    return new if spec.old_config else old


def load_checkpoint(spec: Spec, folder: Path, other_config: dict):
    """Reads back what was stored, as any user of transformers would; both forms of the configuration are the same to it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    expected = random_weights(spec, model.config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name].float()), f"{name} was not loaded as stored"
    other = AutoConfig.for_model(**other_config)
    for key in ("rope_parameters", "head_dim", "num_key_value_heads", "tie_word_embeddings"):
        # `type` is an older word for `rope_type`, and may stand beside it.
        ours, theirs = ({k: v for k, v in value.items() if k != "type"} if isinstance(value, dict) else value
                        for value in (getattr(config, key, None) for config in (model.config, other)))
        assert ours == theirs, f"{key}: {ours}, in the other form {theirs}"
    model.generation_config.eos_token_id = None
    return model


# ------------------------------------------------------------------------------------- the same in f64


class Exact:
    """The equations in f64, straight from the weights; transformers computes norms and softmax in f32 in any type."""

    def __init__(self, model):
        self.config, self.dim = model.config, head_dim(model.config)
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
        self.rotary = model.model.rotary_emb

    def angles(self, n: int, exact: bool) -> torch.Tensor:
        """`[n, D / 2]`: as transformers computes them, in f32; or all in f64."""
        if not exact:
            return (torch.arange(n).float()[:, None] * self.rotary.inv_freq).double()
        return torch.arange(n).double()[:, None] * self.frequencies()

    def frequencies(self) -> torch.Tensor:
        rope, dim = self.config.rope_parameters, self.dim
        pace = rope["rope_theta"] ** -(torch.arange(0, dim, 2).double() / dim)
        factor, kind = rope.get("factor", 1.0), rope["rope_type"]
        if kind == "llama3":
            turns = rope["original_max_position_embeddings"] * pace / (2 * math.pi)
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            kept = ((turns - low) / (high - low)).clamp(0, 1)
        elif kind == "yarn":
            before, theta = rope["original_max_position_embeddings"], rope["rope_theta"]
            ends = [dim * math.log(before / (turns * 2 * math.pi)) / (2 * math.log(theta))
                    for turns in (rope["beta_fast"], rope["beta_slow"])]
            assert not rope["truncate"]
            low, high = max(ends[0], 0), min(ends[1], dim - 1)
            kept = 1 - ((torch.arange(dim // 2).double() - low) / (high - low)).clamp(0, 1)
        else:
            kept = torch.zeros(dim // 2).double()
        return pace * kept + pace / factor * (1 - kept)

    def logits(self, ids: list[int], rows: int, exact_angles: bool = False) -> torch.Tensor:
        """`[rows, V]`, of the last tokens."""
        config = self.config
        x = self.weights["model.embed_tokens.weight"][ids]
        angles = self.angles(len(ids), exact_angles)
        for layer in range(config.num_hidden_layers):
            name = f"model.layers.{layer}."
            h = self.norm(x, name + "input_layernorm")
            q, k, v = (self.linear(h, f"{name}self_attn.{part}_proj").view(len(ids), -1, self.dim) for part in "qkv")
            if f"{name}self_attn.q_norm.weight" in self.weights:
                q, k = self.norm(q, name + "self_attn.q_norm"), self.norm(k, name + "self_attn.k_norm")
            q, k = self.rotate(q, angles), self.rotate(k, angles)
            if layer == config.num_hidden_layers - 1:
                x, q = x[-rows:], q[-rows:]
            group = config.num_attention_heads // config.num_key_value_heads
            k, v = (t.repeat_interleave(group, 1) for t in (k, v))
            scores = torch.einsum("thd,shd->hts", q, k) / self.dim ** 0.5
            behind = torch.arange(len(ids))[None, :] > torch.arange(len(ids) - len(q), len(ids))[:, None]
            o = torch.einsum("hts,shd->thd", scores.masked_fill(behind, -math.inf).softmax(-1), v)
            x = x + self.linear(o.flatten(1), name + "self_attn.o_proj")
            h = self.norm(x, name + "post_attention_layernorm")
            gate = self.linear(h, name + "mlp.gate_proj")
            gate = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}[config.hidden_act](gate)
            x = x + self.linear(gate * self.linear(h, name + "mlp.up_proj"), name + "mlp.down_proj")
        return self.norm(x, "model.norm") @ self.weights["lm_head.weight"].T

    def rotate(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = ((f(angles) * self.rotary.attention_scaling)[:, None] for f in (torch.cos, torch.sin))
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt() * self.weights[name + ".weight"]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.weights[name + ".weight"].T + self.weights.get(name + ".bias", 0)


# -------------------------------------------------------------------------------------------- the cases


def run_long(model, exact: Exact, ids: list[int], tokens: int) -> tuple[dict, torch.Tensor]:
    """One text of LONG tokens, in chunks; logits of the last rows, and greedy ids behind them."""
    text = (ids * (LONG // len(ids) + 1))[:LONG]
    cache, rows = DynamicCache(config=model.config), None
    for start in range(0, LONG, CHUNK):
        rows = model(torch.tensor([text[start:start + CHUNK]]), past_key_values=cache).logits[0]
    logits = rows[-LONG_ROWS:]
    greedy, margins = [], []
    row = logits[-1]
    for _ in range(NEW_TOKENS):
        top2 = row[:tokens].topk(2)
        margins.append(round((top2.values[0] - top2.values[1]).item(), 4))
        greedy.append(top2.indices[0].item())
        row = model(torch.tensor([greedy[-1:]]), past_key_values=cache).logits[0, -1]
    if min(margins) < MIN_MARGIN or tokens - 1 in greedy:
        raise AnotherSeed(f"a top-2 margin of {min(margins)}, or the end token came up: choose another seed")
    error = (logits.double() - exact.logits(text, LONG_ROWS)).abs().max().item()
    return {"prompt_ids": ids, "prompt_length": LONG, "logits_max_abs": round(logits.abs().max().item(), 3),
            "f32_error": float(f"{error:.2g}"), "greedy_ids": greedy, "top2_margins": margins}, logits


@torch.no_grad()
def make(spec: Spec, out: Path):
    folder = out / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    other_config = write_checkpoint(spec, folder)
    tokens, merges = train_bpe(spec.tokens)
    tokens.append(EOT)
    make_tokenizer(tokens, merges).save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOT, "eos_token": EOT,
                "model_max_length": spec.config["max_position_embeddings"], "clean_up_tokenization_spaces": False}
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")

    model = load_checkpoint(spec, folder, other_config)
    exact = Exact(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == spec.tokens

    rng = np.random.default_rng(spec.seed + 1000)
    draw = lambda n: rng.integers(0, spec.tokens, n).tolist()
    cases, tensors, moved = [], {}, 0.0
    if spec.name == "long":
        case, tensors["long.logits"] = run_long(model, exact, draw(LONG_PERIOD), spec.tokens)
        cases.append({"name": "long"} | case)
        text = (case["prompt_ids"] * (LONG // LONG_PERIOD + 1))[:LONG]
        moved = (exact.logits(text, LONG_ROWS) - exact.logits(text, LONG_ROWS, True)).abs().max().item()
    else:
        prompts = {f"len{n}": {"ids": draw(n)} for n in PROMPT_LENGTHS}
        text = text_of_length(tokenizer, 10)
        prompts["text10"] = {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)}
        for name, prompt in prompts.items():
            ids = prompt["ids"]
            case, logits = run_case(model, lambda _: exact.logits(ids, len(ids)), ids, NEW_TOKENS, spec.tokens, spec.tokens - 1)
            if "text" in prompt:
                case |= {"prompt_text": prompt["text"], "greedy_text": tokenizer.decode(case["greedy_ids"])}
            cases.append({"name": name} | case)
            tensors[f"{name}.logits"] = logits.contiguous()
            moved = max(moved, (exact.logits(ids, len(ids)) - exact.logits(ids, len(ids), True)).abs().max().item())
    everything = torch.cat(list(tensors.values()))
    padding = (everything.argmax(-1) >= spec.tokens).sum().item()
    assert (padding > 0) == (model.config.vocab_size > spec.tokens), "padding rows would be drawn where there are any"
    save_file(tensors, folder / "golden.safetensors")

    head = made_by("make_families.py") | {
        "seed": spec.seed,
        "stored_dtype": str(spec.dtype).removeprefix("torch."),
        "reference": "f32, eager attention, greedy with KV cache, end token ignored, padding rows never drawn",
        "tokens": spec.tokens,
        "min_top2_margin": min(min(case["top2_margins"]) for case in cases),
        "f32_error": max(case["f32_error"] for case in cases),
        "exact_angles_move": float(f"{moved:.2g}"),
        "other_config": other_config,
    }
    texts = tokenizer_cases(TOKENIZER_TEXTS, tokenizer, make_tokenizer(tokens, merges, with_eot=False))
    write_text(folder / "golden.json", lines_json(head, {"cases": cases, "tokenizer": texts}))
    for path in folder.iterdir():
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{spec.name}: seed {spec.seed}, {size / 1024:.0f} KiB, logits std {everything.std().item():.2f}, |max| "
          f"{everything.abs().max().item():.1f}, min margin {head['min_top2_margin']}, f32 error {head['f32_error']}, exact angles move "
          f"{head['exact_angles_move']}, distinct greedy ids {[len(set(case['greedy_ids'])) for case in cases]}", flush=True)


if __name__ == "__main__":
    main(make, SPECS, __doc__)
