#!/usr/bin/env python3
"""Small GGUF files, and what the `gguf` package reads from them.

    gguf/blocks.gguf               one tensor of each type that is read, random bytes with scales of moderate size
    gguf/blocks.safetensors        the same in f32, as `gguf.quants.dequantize` computes it
    gguf/llama-0000N-of-00002.gguf a llama, split: its queries and keys stand as pairs, as llama.cpp's converter leaves them
    gguf/llama.safetensors         its tensors in f32, in Hugging Face's names and order of rows
    gguf/gpt2.gguf, .safetensors   the same of a GPT-2 with some matrices in blocks
    gguf/qwen2.gguf, qwen3.gguf    likewise: queries and keys stand as they are, with biases, or with norms of their own
    gguf/ids.json                  texts, and their ids by the tokenizers in these files: of sentencepiece for the llama's, of
                                   tokenizers for the others; special tokens are not looked for in them

Everything comes from a fixed seed; the tokenizers are trained on this script. It needs no network.

    python3 -m venv VENV && VENV/bin/pip install gguf==0.19.0 safetensors==0.8.0 sentencepiece==0.2.3 tokenizers==0.23.3
    VENV/bin/python make_gguf.py [OUT]       # OUT: default the folder of this script
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import sentencepiece
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# Where the f16 scales of a block lie.
SCALES = {Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q4_K: [0, 2],
          Type.Q5_K: [0, 2], Type.Q6_K: [208]}
PLAIN = [Type.F32, Type.F16, Type.BF16]

VOCABULARY = 448
TEXTS = ["Hello, world!", " the  tensor   of two  spaces ", "", " ", "你好，世界！", "🙂👩‍👩‍👧 é e\u0301", "def f(x):\n\treturn x**2  # 12345 3.14\n\n",
         "The gguf package reads the name of each tensor.", "don't WE'RE 'll", "<s>a</s><|endoftext|>", "x²½ ١٢٣ мир", "\r\n\x00\x7f\u00a0"]


def blocks(out: Path, random: np.random.Generator):
    writer = GGUFWriter(out / "blocks.gguf", "none")
    expected = {}
    for kind in [*PLAIN, *SCALES]:
        if kind in PLAIN:
            data = quantize(random.standard_normal((2, 256), dtype=np.float32), kind)
        else:
            elements, size = GGML_QUANT_SIZES[kind]
            rows = random.integers(0, 256, (2, 256 // elements, size), dtype=np.uint8)
            for at in SCALES[kind]:
                scale = (random.standard_normal(rows.shape[:2]) * 0.01).astype(np.float16)
                rows[:, :, at:at + 2] = scale[..., None].view(np.uint8)
            data = rows.reshape(2, -1)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        expected[kind.name] = dequantize(data, kind)
    write(writer)
    save_file(expected, out / "blocks.safetensors")


def write(writer: GGUFWriter):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def paired(weights: np.ndarray, heads: int) -> np.ndarray:
    """As `LlamaModel.permute` of convert_hf_to_gguf.py."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def unpaired(weights: np.ndarray, heads: int) -> np.ndarray:
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


class Model:
    """Writes tensors, and remembers what is read from them."""

    def __init__(self, random: np.random.Generator, writer: GGUFWriter):
        self.random, self.writer, self.expected = random, writer, {}

    def add(self, name: str, sizes: list[int], kind: Type, called: str, *, heads: int = 0, turned: bool = False):
        weights = self.random.standard_normal(sizes, dtype=np.float32) * 0.3
        data = quantize(paired(weights, heads) if heads else weights, kind)
        self.writer.add_tensor(name, data, raw_dtype=kind)
        read = dequantize(data, kind)
        read = unpaired(read, heads) if heads else read
        self.expected[called] = np.ascontiguousarray(read.T if turned else read)


def sentence_piece(writer: GGUFWriter) -> list[list[int]]:
    """As `LlamaHfVocab` and `SentencePieceVocab` of llama.cpp's converter write it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for line in Path(__file__).read_text().splitlines() if line.isascii()), model_writer=model, model_type="bpe",
        vocab_size=VOCABULARY, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=True, num_threads=1, minloglevel=2)
    model = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
             for i in range(VOCABULARY)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(i) for i in range(VOCABULARY)])
    writer.add_token_scores([model.get_score(i) for i in range(VOCABULARY)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ bos_token + message['content'] + eos_token }}{% endfor %}")
    return [model.encode(text) for text in TEXTS]


# As tokenizer.json of Qwen2.5 has it.
QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+")


def byte_level(writer: GGUFWriter, pre: str) -> list[list[int]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    # The end of text is the last, as in GPT-2.
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train([__file__], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    assert len(tokens) == VOCABULARY - 1, len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, end])
    writer.add_token_types([1] * len(tokens) + [3])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens))
    return [tokenizer.encode(text).ids for text in TEXTS]


def llama(out: Path, random: np.random.Generator) -> list[list[int]]:
    width, layers, heads, kv_heads, head, inner, vocabulary = 32, 1, 4, 2, 8, 64, VOCABULARY
    writer = GGUFWriter(out / "llama.gguf", "llama", split_max_tensors=8)
    writer.add_context_length(48)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_eot_token_id(3)
    ids = sentence_piece(writer)
    model = Model(random, writer)
    model.add("token_embd.weight", [vocabulary, width], Type.Q8_0, "model.embed_tokens.weight")
    for i in range(layers):
        of = lambda name, sizes, kind, called, heads=0: model.add(
            f"blk.{i}.{name}", sizes, kind, f"model.layers.{i}.{called}", heads=heads)
        of("attn_norm.weight", [width], Type.F32, "input_layernorm.weight")
        of("attn_q.weight", [heads * head, width], Type.Q4_1, "self_attn.q_proj.weight", heads)
        of("attn_k.weight", [kv_heads * head, width], Type.Q5_0, "self_attn.k_proj.weight", kv_heads)
        of("attn_v.weight", [kv_heads * head, width], Type.F16, "self_attn.v_proj.weight")
        of("attn_q.bias", [heads * head], Type.F32, "self_attn.q_proj.bias", heads)
        of("attn_k.bias", [kv_heads * head], Type.F32, "self_attn.k_proj.bias", kv_heads)
        of("attn_v.bias", [kv_heads * head], Type.F32, "self_attn.v_proj.bias")
        of("attn_output.weight", [width, heads * head], Type.Q4_0, "self_attn.o_proj.weight")
        of("attn_output.bias", [width], Type.F32, "self_attn.o_proj.bias")
        of("ffn_norm.weight", [width], Type.F32, "post_attention_layernorm.weight")
        of("ffn_gate.weight", [inner, width], Type.Q5_1, "mlp.gate_proj.weight")
        of("ffn_up.weight", [inner, width], Type.BF16, "mlp.up_proj.weight")
        of("ffn_down.weight", [width, inner], Type.Q4_0, "mlp.down_proj.weight")
    model.add("output_norm.weight", [width], Type.F32, "model.norm.weight")
    model.add("output.weight", [vocabulary, width], Type.F16, "lm_head.weight")
    write(writer)
    save_file(model.expected, out / "llama.safetensors")
    return ids


def gpt2(out: Path, random: np.random.Generator) -> list[list[int]]:
    width, layers, heads, context, vocabulary = 32, 1, 4, 24, VOCABULARY
    writer = GGUFWriter(out / "gpt2.gguf", "gpt2")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(4 * width)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-5)
    ids = byte_level(writer, "gpt-2")
    model = Model(random, writer)
    model.add("token_embd.weight", [vocabulary, width], Type.Q8_0, "wte.weight")
    model.add("position_embd.weight", [context, width], Type.F32, "wpe.weight")
    for i in range(layers):
        for name, called in [("attn_norm", "ln_1"), ("ffn_norm", "ln_2")]:
            model.add(f"blk.{i}.{name}.weight", [width], Type.F32, f"h.{i}.{called}.weight")
            model.add(f"blk.{i}.{name}.bias", [width], Type.F32, f"h.{i}.{called}.bias")
        for name, called, outputs, inputs, kind in [
                ("attn_qkv", "attn.c_attn", 3 * width, width, Type.Q4_1),
                ("attn_output", "attn.c_proj", width, width, Type.F16),
                ("ffn_up", "mlp.c_fc", 4 * width, width, Type.Q8_0),
                ("ffn_down", "mlp.c_proj", width, 4 * width, Type.Q5_1)]:
            model.add(f"blk.{i}.{name}.weight", [outputs, inputs], kind, f"h.{i}.{called}.weight", turned=True)
            model.add(f"blk.{i}.{name}.bias", [outputs], Type.F32, f"h.{i}.{called}.bias")
    model.add("output_norm.weight", [width], Type.F32, "ln_f.weight")
    model.add("output_norm.bias", [width], Type.F32, "ln_f.bias")
    write(writer)
    save_file(model.expected, out / "gpt2.safetensors")
    return ids


def qwen(out: Path, architecture: str, random: np.random.Generator) -> list[list[int]]:
    width, layers, heads, kv_heads, head, inner = 32, 1, 6, 2, 8, 64
    writer = GGUFWriter(out / f"{architecture}.gguf", architecture)
    writer.add_context_length(48)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    ids = byte_level(writer, "qwen2")
    model = Model(random, writer)
    model.add("token_embd.weight", [VOCABULARY, width], Type.Q8_0, "model.embed_tokens.weight")
    for i in range(layers):
        of = lambda name, sizes, kind, called: model.add(f"blk.{i}.{name}", sizes, kind, f"model.layers.{i}.{called}")
        of("attn_norm.weight", [width], Type.F32, "input_layernorm.weight")
        for name, called, of_heads, kind in [("q", "q", heads, Type.Q8_0), ("k", "k", kv_heads, Type.Q5_1),
                                             ("v", "v", kv_heads, Type.Q4_0)]:
            of(f"attn_{name}.weight", [of_heads * head, width], kind, f"self_attn.{called}_proj.weight")
            if architecture == "qwen2":
                of(f"attn_{name}.bias", [of_heads * head], Type.F32, f"self_attn.{called}_proj.bias")
        if architecture == "qwen3":
            for name in ["q", "k"]:
                of(f"attn_{name}_norm.weight", [head], Type.F32, f"self_attn.{name}_norm.weight")
        of("attn_output.weight", [width, heads * head], Type.F16, "self_attn.o_proj.weight")
        of("ffn_norm.weight", [width], Type.F32, "post_attention_layernorm.weight")
        of("ffn_gate.weight", [inner, width], Type.Q4_1, "mlp.gate_proj.weight")
        of("ffn_up.weight", [inner, width], Type.Q5_0, "mlp.up_proj.weight")
        of("ffn_down.weight", [width, inner], Type.Q8_0, "mlp.down_proj.weight")
    model.add("output_norm.weight", [width], Type.F32, "model.norm.weight")
    write(writer)
    save_file(model.expected, out / f"{architecture}.safetensors")
    return ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out / "gguf"
    out.mkdir(parents=True, exist_ok=True)
    blocks(out, np.random.default_rng(1))
    ids = {"llama": llama(out, np.random.default_rng(2)), "gpt2": gpt2(out, np.random.default_rng(3)),
           "qwen2": qwen(out, "qwen2", np.random.default_rng(4)), "qwen3": qwen(out, "qwen3", np.random.default_rng(5))}
    (out / "ids.json").write_text(json.dumps({"texts": TEXTS} | ids) + "\n")
    for file in sorted(out.glob("*.gguf")):
        print(file.name, len(GGUFReader(file).tensors), "tensors")


if __name__ == "__main__":
    main()
