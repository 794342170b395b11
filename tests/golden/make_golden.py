#!/usr/bin/env python3
"""Golden data for the forward pass, the greedy loop and the tokenizer, made by transformers + torch.

Makes four small GPT-2 checkpoints with random weights, in the layouts found on the Hub, and beside each:

    golden.safetensors   "<case>.logits": f32 [T, vocab_size], one row per prompt position
    golden.json          per case the prompt ids, the greedy continuation and its top-2 margins;
                         then text -> ids for the tokenizer

The reference runs in f32, eager attention, one thread, from the weights as they are STORED (so after
rounding to f16 where the file is f16). Every number comes from a fixed seed: running this twice on one
machine writes the same bytes. It needs no network.

    python3 -m venv VENV && VENV/bin/pip install -r requirements.txt
    VENV/bin/python make_golden.py [OUT]        # OUT: default the folder of this script
"""

import argparse
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

N_POSITIONS = 64
NEW_TOKENS = 16
EOT = "<|endoftext|>"

# Lengths around a KV block of 16, one that crosses two blocks, and one that fills the context exactly.
PROMPT_LENGTHS = [1, 2, 15, 16, 17, 33, N_POSITIONS]

# An argmax that hangs on less than this would make a greedy test flaky: the seeds are chosen to stay above.
MIN_MARGIN = 0.01


class AnotherSeed(Exception):
    """The random weights do not make good golden data."""


@dataclass
class Spec:
    """One model. `config` holds what differs from GPT2Config's defaults."""

    name: str
    seed: int
    config: dict
    dtype: torch.dtype = torch.float32
    old_layout: bool = False  # names without "transformer.", mask buffers, a config.json as of 2019
    tokenizer_json: bool = False  # one tokenizer.json instead of vocab.json + merges.txt
    wte_std: float = 0.3  # logits have a standard deviation near wte_std * sqrt(n_embd)
    wpe_std: float = 0.8


SPECS = [
    # Odd head count and vocabulary; the FFN's 160 columns are blocks of 64 + 64 + 32.
    Spec("heads5", 155, dict(n_layer=2, n_head=5, n_embd=40, vocab_size=307)),
    # As old Hub files are: f16, bare names, mask buffers. FFN blocks 64 + 64 + 2.
    Spec("heads7", 58, dict(n_layer=3, n_head=7, n_embd=84, n_inner=130, vocab_size=389),
         dtype=torch.float16, old_layout=True, wte_std=0.2),
    # Every option of the config that changes a number; odd head_dim 5. The small embeddings make the large
    # LayerNorm epsilon count.
    Spec("inner", 157, dict(n_layer=3, n_head=6, n_embd=30, n_inner=77, vocab_size=283,
                           activation_function="gelu", layer_norm_epsilon=1e-3,
                           scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
         tokenizer_json=True, wpe_std=0.4),
    # One FFN block and one vocabulary block: with 2 or 3 ranks some hold an empty share of each.
    Spec("tiny", 80, dict(n_layer=1, n_head=3, n_embd=48, n_inner=48, vocab_size=61)),
]


# ---------------------------------------------------------------------------------------------- weights


def random_state_dict(spec: Spec) -> dict[str, torch.Tensor]:
    """Weights large enough that each layer moves the logits: attention scores with a standard deviation
    near 2, layer outputs as large as the residual stream, every bias and LayerNorm term away from its
    neutral value. A bias added twice, mixed-up heads or a missing scale then shows far above rounding."""
    config = GPT2Config(**spec.config)
    rng = np.random.default_rng(spec.seed)
    c, inner = config.n_embd, config.n_inner or 4 * config.n_embd

    def normal(shape, std, mean=0.0):
        values = mean + std * rng.standard_normal(shape)
        return torch.from_numpy(values.astype(np.float32))

    def bias(n):
        # At least 0.05 from zero, so that none can be forgotten unseen.
        values = rng.uniform(0.05, 0.3, n) * rng.choice([-1.0, 1.0], n)
        return torch.from_numpy(values.astype(np.float32))

    weights = {
        "wte.weight": normal((config.vocab_size, c), spec.wte_std),
        "wpe.weight": normal((N_POSITIONS, c), spec.wpe_std),
    }
    for i in range(config.n_layer):
        h = f"h.{i}."
        # Conv1D layout: [in, out], and c_attn's columns are q | k | v.
        weights |= {
            h + "ln_1.weight": normal(c, 0.2, 1.0),
            h + "ln_1.bias": normal(c, 0.2),
            h + "attn.c_attn.weight": normal((c, 3 * c), (2.0 / c) ** 0.5),
            h + "attn.c_attn.bias": bias(3 * c),
            h + "attn.c_proj.weight": normal((c, c), (1.0 / c) ** 0.5),
            h + "attn.c_proj.bias": bias(c),
            h + "ln_2.weight": normal(c, 0.2, 1.0),
            h + "ln_2.bias": normal(c, 0.2),
            h + "mlp.c_fc.weight": normal((c, inner), (1.5 / c) ** 0.5),
            h + "mlp.c_fc.bias": bias(inner),
            h + "mlp.c_proj.weight": normal((inner, c), (2.0 / inner) ** 0.5),
            h + "mlp.c_proj.bias": bias(c),
        }
    weights |= {"ln_f.weight": normal(c, 0.2, 1.0), "ln_f.bias": normal(c, 0.2)}
    return {name: tensor.to(spec.dtype) for name, tensor in weights.items()}


def mask_buffers(spec: Spec) -> dict[str, torch.Tensor]:
    """The causal masks that transformers stored with the weights until 2023. They were f32 or f16, then
    u8, then bool; one layer has each here. A loader ignores them, whatever their type."""
    mask = torch.tril(torch.ones(N_POSITIONS, N_POSITIONS)).view(1, 1, N_POSITIONS, N_POSITIONS)
    buffers = {}
    for i, dtype in zip(range(spec.config["n_layer"]), [torch.uint8, torch.bool, spec.dtype]):
        buffers[f"h.{i}.attn.bias"] = mask.to(dtype)
        buffers[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4, dtype=spec.dtype)
    return buffers


def write_checkpoint(spec: Spec, folder: Path):
    eos = spec.config["vocab_size"] - 1
    config = GPT2Config(n_positions=N_POSITIONS, bos_token_id=eos, eos_token_id=eos, **spec.config)
    weights = random_state_dict(spec)
    if spec.old_layout:
        save_file(weights | mask_buffers(spec), folder / "model.safetensors", {"format": "pt"})
        # config.json as gpt2's own on the Hub: n_ctx, and none of the keys that came later.
        keys = ["activation_function", "attn_pdrop", "bos_token_id", "embd_pdrop", "eos_token_id", "initializer_range",
                "layer_norm_epsilon", "model_type", "n_embd", "n_head", "n_inner", "n_layer", "n_positions",
                "resid_pdrop", "vocab_size"]
        old = {key: getattr(config, key) for key in keys}
        old |= {"architectures": ["GPT2LMHeadModel"], "n_ctx": N_POSITIONS}
        write_text(folder / "config.json", json.dumps(dict(sorted(old.items())), indent=2) + "\n")
    else:
        model = GPT2LMHeadModel(config)
        model.transformer.load_state_dict(weights)
        model.save_pretrained(folder)


def load_checkpoint(spec: Spec, folder: Path) -> GPT2LMHeadModel:
    """Reads back what was stored, as any user of transformers would, and checks it against the source."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    loaded = model.transformer.state_dict()
    expected = random_state_dict(spec)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor.float()), f"{name} was not loaded as stored"
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr(), "the embedding is tied"
    return model


# -------------------------------------------------------------------------------------------- tokenizer

TRAINING_TEXT = """\
The sea was calm in the morning, and the small boat went out with the others to look for fish. There were
three people in the boat: the old man, his daughter, and a boy who had never been on the water before.
"Where are we going?" the boy asked. "To the place where the river meets the sea," the old man said. "There's
always something there." The boy didn't know what to say, so he looked at the birds and counted them: one,
two, three, four, five. They're here every day, he thought, and they don't get tired of it.

When the wind came in the afternoon, the daughter took the oars and they turned back to the shore. The nets
were heavy and the sun was low. "We'll eat well tonight," she said, "and tomorrow we'll do it again." It was
the 14th of June, and the water shone like 1,000 lamps. Nobody in the village had seen such a day in 30 years.
"""

TOKENIZER_TEXTS = [
    "",
    "Hello world",
    " leading space",
    "  two leading spaces, and trailing ",
    "We'll see: they're sure it's what I'd do, he'S not",
    "tabs\tand\nnew lines\n\n\n  indented",
    "1234567890 and 3.14",
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d don\u2019t match",
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "one" + EOT + "two",
    "The boy looked at the sea and said: \"There's something in the water!\"",
]

# tiny has 61 entries, so it cannot spell every byte: its texts keep to these 60 characters.
TINY_ALPHABET = "abcdefghijklmnopqrstuvwxyz" "0123456789" "ABCHIMSTUWY" " \n" ".,!?'\"-:;()"
TINY_TEXTS = [
    "",
    "Hi there, who are you?",
    "  two spaces  ",
    "User: What's the time?\nAssistant:",
    "It's (about) 10:45; \"maybe\" - they'll say!",
    "one" + EOT + "two",
]


def byte_level_characters() -> list[str]:
    """GPT-2's 256 stand-in characters, in the order of its own vocab.json."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def train_bpe(vocab_size: int) -> tuple[list[str], list[str]]:
    """256 bytes and vocab_size - 257 merges; the last id is left for EOT. Returns (tokens by id, merges)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=byte_level_characters(),
                                  show_progress=False)
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    state = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    assert len(tokens) == vocab_size - 1, "the training text is too short for this vocabulary"
    return tokens, [" ".join(pair) for pair in state["merges"]]


def make_tokenizer(tokens: list[str], merges: list[str], with_eot: bool = True) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = None
    tokenizer.decoder = decoders.ByteLevel()
    if with_eot:
        tokenizer.add_special_tokens([AddedToken(EOT, special=True, normalized=False)])
    return tokenizer


def write_tokenizer(spec: Spec, folder: Path) -> Tokenizer:
    """Returns the same tokenizer without special tokens: a typed EOT is plain text to it."""
    vocab_size = spec.config["vocab_size"]
    if vocab_size < 257:
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokens, merges = sorted(spell.pre_tokenize_str(ch)[0][0] for ch in TINY_ALPHABET), []
    else:
        tokens, merges = train_bpe(vocab_size)
    tokens.append(EOT)
    assert len(tokens) == len(set(tokens)) == vocab_size

    if spec.tokenizer_json:
        make_tokenizer(tokens, merges).save(str(folder / "tokenizer.json"), pretty=False)
    else:
        vocab = {token: i for i, token in enumerate(tokens)}
        write_text(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False, separators=(",", ":")) + "\n")
        write_text(folder / "merges.txt", "\n".join(["#version: 0.2"] + merges) + "\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": EOT, "eos_token": EOT,
                "unk_token": EOT, "model_max_length": N_POSITIONS}
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    return make_tokenizer(tokens, merges, with_eot=False)


def tokenizer_cases(texts: list[str], tokenizer, plain: Tokenizer) -> list[dict]:
    cases = []
    for text in texts:
        case = {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)}
        assert tokenizer.decode(case["ids"]) == text
        if EOT in text:
            # What an untrusted text must become: no special tokens in it.
            case["ids_without_special"] = plain.encode(text, add_special_tokens=False).ids
        cases.append(case)
    return cases


def text_of_length(tokenizer, n: int) -> str:
    """The shortest beginning of the training text with exactly n tokens, fit for a prompt sent as text."""
    source = TRAINING_TEXT
    if len(tokenizer) < 257:
        source = "".join(ch for ch in source if ch in TINY_ALPHABET)
    for end in range(1, len(source)):
        text = source[:end]
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == n and not text.endswith((" ", "\n")):
            return text
    raise AssertionError(f"no beginning of the text has {n} tokens")


# -------------------------------------------------------------------------------------------- the cases


def run_case(model, exact_logits, ids: list[int], most: int, tokens: int, eos: int) -> tuple[dict, torch.Tensor]:
    """One prompt through the f32 model, and at most `most` greedy ids behind it, of the first `tokens` of the vocabulary.
    `exact_logits` computes the same in f64, to know the rounding of the f32."""
    prompt = torch.tensor([ids])
    logits = model(prompt).logits[0]
    case = {
        "prompt_ids": ids,
        "logits_max_abs": round(logits.abs().max().item(), 3),
        "f32_error": float(f"{(logits.double() - exact_logits(prompt)).abs().max().item():.2g}"),
    }
    new_tokens = min(most, model.config.max_position_embeddings - len(ids))
    if new_tokens == 0:
        return case | {"greedy_ids": [], "top2_margins": []}, logits

    # generate() with its KV cache; the end token is not in the generation config, so it does not stop.
    padding = list(range(tokens, model.config.vocab_size)) or None
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False,
                            suppress_tokens=padding, use_cache=True, return_dict_in_generate=True, output_logits=True)
    greedy = output.sequences[0, len(ids):].tolist()
    steps = torch.stack(output.logits)[:, 0]  # [new_tokens, vocab_size]
    assert len(greedy) == new_tokens and greedy == steps[:, :tokens].argmax(-1).tolist()

    # The cache must not change the answer: the same rows from one pass over the whole sequence.
    whole = model(output.sequences[:, :-1]).logits[0, len(ids) - 1:]
    assert (whole - steps).abs().max() <= 1e-4 * max(1.0, steps.abs().max().item())

    top2 = steps[:, :tokens].topk(2).values
    margins = [round(m, 4) for m in (top2[:, 0] - top2[:, 1]).tolist()]
    if min(margins) < MIN_MARGIN or eos in greedy:
        raise AnotherSeed(f"a top-2 margin of {min(margins)}, or the end token came up: choose another seed")
    return case | {"greedy_ids": greedy, "top2_margins": margins}, logits


@torch.no_grad()
def make_golden(spec: Spec, out: Path):
    folder = out / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(spec, folder)
    plain = write_tokenizer(spec, folder)

    model = load_checkpoint(spec, folder)
    model.generation_config.eos_token_id = None
    exact = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    for block in exact.transformer.h:
        block.attn.reorder_and_upcast_attn = False  # it would "upcast" f64 to f32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size

    # Prompts of random ids reach every part of the vocabulary; the two texts can be sent as text. The second
    # text and its continuation fill the context exactly.
    rng = np.random.default_rng(spec.seed + 1000)
    prompts = {f"len{n}": {"ids": rng.integers(0, model.config.vocab_size, n).tolist()} for n in PROMPT_LENGTHS}
    for name, n in [("text10", 10), ("text48", N_POSITIONS - NEW_TOKENS)]:
        text = text_of_length(tokenizer, n)
        prompts[name] = {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)}

    cases, tensors = [], {}
    for name, prompt in prompts.items():
        case, logits = run_case(model, lambda prompt: exact(prompt).logits[0], prompt["ids"], NEW_TOKENS,
                                model.config.vocab_size, eos=model.config.vocab_size - 1)
        if "text" in prompt:
            case |= {"prompt_text": prompt["text"], "greedy_text": tokenizer.decode(case["greedy_ids"])}
        cases.append({"name": name} | case)
        tensors[f"{name}.logits"] = logits.contiguous()
    save_file(tensors, folder / "golden.safetensors")

    head = made_by("make_golden.py") | {
        "seed": spec.seed,
        "stored_dtype": str(spec.dtype).removeprefix("torch."),
        "reference": "f32, eager attention, greedy with KV cache, end token ignored",
        "min_top2_margin": min(min(case["top2_margins"], default=np.inf) for case in cases),
        "f32_error": max(case["f32_error"] for case in cases),
    }
    texts = TINY_TEXTS if spec.name == "tiny" else TOKENIZER_TEXTS
    write_text(folder / "golden.json", lines_json(head, {"cases": cases,
                                                         "tokenizer": tokenizer_cases(texts, tokenizer, plain)}))
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files only their owner can read
    everything = torch.cat(list(tensors.values()))
    print(f"{spec.name}: logits std {everything.std().item():.2f}, |max| {everything.abs().max().item():.1f}, "
          f"min margin {head['min_top2_margin']}, f32 error {head['f32_error']}, distinct greedy ids "
          f"{[len(set(case['greedy_ids'])) for case in cases]}")


# ------------------------------------------------------------------------------------------------ files


def made_by(script: str) -> dict:
    return {
        "made_by": script,
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0],
                     "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
                     "safetensors": safetensors.__version__, "numpy": np.__version__},
    }


def lines_json(head: dict, lists: dict) -> str:
    """JSON with one line per list item: short, and still readable in a diff."""
    parts = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    for key, items in lists.items():
        parts.append(f'"{key}": [\n' + ",\n".join("  " + json.dumps(item) for item in items) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write_text(path: Path, text: str):
    path.write_text(text, encoding="utf-8", newline="\n")


def main(make, specs, description):
    """Makes what `specs` say, in the folder that the command line names; for the scripts beside this one too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    out = parser.parse_args().out
    torch.set_num_threads(1)  # one order of addition
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for spec in specs:
        make(spec, out)


if __name__ == "__main__":
    main(make_golden, SPECS, __doc__)
