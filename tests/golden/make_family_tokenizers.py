#!/usr/bin/env python3
"""Small tokenizers built as those of the Llama family are, with what the tokenizers library makes of them.

usage: make_family_tokenizers.py > family_tokenizers.json        (versions: requirements.txt)
The same entries as in tokenizers.json, and besides: `bytes`, what each token adds to a text (hexadecimal), and for each text `pieces`, as
the library's DecodeStream gives them, special tokens left out. The library itself is the reference: transformers' own LlamaTokenizer
builds its parts anew, whatever tokenizer.json says.
"""
import json, random, sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = ["the cat sat on the mat", "I'm sure they're all here, aren't they?", "hello world 2024, 10 times!", "naïve café 日本語", "def f(x):\n    return x\n\n", "if  a == b: print('ok')  "] * 20
TEXTS = ["", "the cat sat", " the cat  sat ", "Hello, the café?", "日本語は 🦀 です", "12345 6.78 x10²³ ٣٤٥", "I'M they'RE it'S it'\u017f 'tis", "a  \n\n  b\t\r\n c \n", "end   ", "   ", "\n", "e\u0301 \u00c5\u212b ﬁ", "👩\u200d👩\u200d👧 🇩🇪👍🏽", "x\u00a0y\u0085z\u200b\u3000q\u2028", "สวัสดี Привет नमस्ते", "a\u0000b\u001f", "▁under ▁▁ x", "<0x41><0x0A> <unk>", "(a+b)*c!=d;--//\\\\ \"q\"", "<|im_start|>user\nhi<|im_end|>\n", "<s>[INST] hi [/INST] ok</s> x", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi 7<|eot_id|>", "<think>\n2 < 3\n</think>\n\nok"]

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
POSSESSIVE = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(first, specials=(), size=340, normalizer=None, **kw):
    """Byte-level BPE; `specials` come first in the vocabulary."""
    t = Tokenizer(models.BPE(**kw))
    use_regex = not isinstance(first, str)
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    t.pre_tokenizer = pre_tokenizers.Sequence([first if use_regex else pre_tokenizers.Split(Regex(first), "isolated"), byte])
    t.decoder, t.normalizer = decoders.ByteLevel(), normalizer
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=list(specials), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    t.train_from_iterator(CORPUS, trainer)
    return t


def begins_with(bos, t):
    template = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, t.token_to_id(bos))])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return t


def smollm2():
    return byte_level(pre_tokenizers.Digits(individual_digits=True), CHATML + ["<repo_name>"])


def llama3():
    t = byte_level(LLAMA3)
    # Whole words that no merges lead to: only `ignore_merges` finds them.
    j = json.loads(t.to_str())
    j["model"]["ignore_merges"] = True
    for word in ("Ġreturn", "hello", "Ġmat"):
        j["model"]["vocab"].setdefault(word, len(j["model"]["vocab"]))
    j["model"]["merges"] = [m for m in j["model"]["merges"] if "".join(m) not in ("Ġreturn", "hello", "Ġmat")]
    t = Tokenizer.from_str(json.dumps(j))
    t.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"])
    return begins_with("<|begin_of_text|>", t)


def qwen(thinks):
    t = byte_level(QWEN2, normalizer=normalizers.NFC())
    t.add_special_tokens(CHATML)
    t.add_tokens([AddedToken(token, normalized=False) for token in ["<tool_call>", "</tool_call>"] + ["<think>", "</think>"] * thinks])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def sentence_piece(metaspace, specials=()):
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    kw = dict(byte_fallback=True, fuse_unk=True)
    t = Tokenizer(models.BPE(unk_token="<unk>", **kw))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False) if metaspace else None
    t.normalizer = None if metaspace else normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<unk>", "<s>", "</s>", *specials, *bytes_], show_progress=False)
    corpus = "\n".join(CORPUS[:6]).replace("日本語", "").replace("é", "e").replace("\n", " ")
    # In words, so that none of the vocabulary spans them.
    t.train_from_iterator(corpus.split(" ") * 20, trainer)
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    # The bytes are tokens of the model, not added ones.
    j = json.loads(t.to_str())
    j["added_tokens"] = [a for a in j["added_tokens"] if not a["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(j))


def kinds():
    """Name, tokenizer, tokenizer_config.json, padding rows."""
    ends = lambda bos, eos: {"bos_token": bos, "eos_token": eos}
    yield "SmolLM2", smollm2(), {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "unk_token": "<|endoftext|>"} | ends("<|im_start|>", "<|im_end|>"), 0
    yield "Llama 3", llama3(), {"tokenizer_class": "PreTrainedTokenizerFast"} | ends("<|begin_of_text|>", "<|eot_id|>"), 0
    yield "Qwen2.5", qwen(False), {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "unk_token": None} | ends(None, "<|im_end|>"), 37
    yield "Qwen3", qwen(True), {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "unk_token": None} | ends(None, "<|im_end|>"), 64
    yield "possessive", byte_level(POSSESSIVE), {"tokenizer_class": "PreTrainedTokenizerFast"}, 0
    yield "cased", byte_level(CASED), {"tokenizer_class": "PreTrainedTokenizerFast"}, 0
    llama = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "unk_token": "<unk>", "legacy": False} | ends("<s>", "</s>")
    yield "TinyLlama", sentence_piece(False), llama, 0
    yield "Mistral", sentence_piece(True, ["[INST]", "[/INST]"]), llama, 0


def byte_of_char():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def added_bytes(t, is_byte_level):
    """What each token adds to a text, in the middle of one."""
    alphabet, added = byte_of_char(), t.get_added_tokens_decoder()
    def one(i):
        token = t.id_to_token(i)
        if i in added:
            return token.encode()
        if is_byte_level:
            return bytes(alphabet[c] for c in token)
        if len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()
    return [one(i).hex() for i in range(t.get_vocab_size())]


def pieces(t, ids):
    stream = decoders.DecodeStream(skip_special_tokens=True)
    return [stream.step(t, i) or "" for i in ids]


def entry(name, t, config, padding):
    rows, is_byte_level = t.get_vocab_size(), "ByteLevel" in type(t.decoder).__name__
    literal = Tokenizer.from_str(t.to_str())
    literal.encode_special_tokens = True
    texts = []
    for text in TEXTS:
        ids = t.encode(text, add_special_tokens=False).ids
        document, typed = t.encode(text).ids, literal.encode(text, add_special_tokens=False).ids
        texts.append(dict(text=text, ids=ids, literal=typed, document=document, decoded=t.decode(ids, skip_special_tokens=False), pieces=pieces(t, ids)))
    draw = random.Random(name)
    sequences = [[draw.randrange(rows) for _ in range(n)] for n in (1, 2, 5, 30, 200)] + [text["ids"] for text in texts]
    sequences = [dict(ids=ids, text=t.decode(ids)) for ids in sequences]
    return dict(kind=name, rows=rows + padding, files={"tokenizer.json": json.loads(t.to_str()), "tokenizer_config.json": config}, eos=config.get("eos_token"), bytes=added_bytes(t, is_byte_level), texts=texts, sequences=sequences)


if __name__ == "__main__":
    entries = [entry(*kind) for kind in kinds()]
    print(json.dumps({"versions": {"tokenizers": tokenizers.__version__}, "kinds": []}, ensure_ascii=False)[:-2] + "\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries) + "\n]}")
