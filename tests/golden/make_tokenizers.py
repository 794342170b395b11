#!/usr/bin/env python3
"""Small tokenizers of every kind that tokenizer.json can describe, with what transformers makes of them.

usage: make_tokenizers.py > tokenizers.json        (versions: requirements.txt)
One entry a kind: the files of its folder, texts with their ids (`ids`: specials are matched, nothing is added around; `literal`:
specials are text; `document`: with what goes around), and sequences of ids with their text, special tokens left out.
"""
import json, os, pathlib, random, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import tokenizers, transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

transformers.logging.set_verbosity_error()
CORPUS = ["the cat sat on the mat", "a dog and a cat, again and again!", "hello world, it's a test.", "naïve café 日本"] * 20
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
TEXTS = ["the cat sat", " the cat  sat ", "", "Hello, the café?", "日本 is a 🦀", "cat<mask>dog <mask> x", "x <|user|>\nhi", "the WORD wordy word", "a</s>b <s>", "See Quokka-7  [l][r]  日本 here"]


def train(model, trainer, pre=None, decoder=None, normalizer=None):
    t = Tokenizer(model)
    t.pre_tokenizer, t.decoder, t.normalizer = pre, decoder, normalizer
    t.train_from_iterator(CORPUS, trainer)
    return t


def byte_level(size=300, **kw):
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return train(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), **kw)


def bpe(pre, decoder, **kw):
    trainer = trainers.BpeTrainer(vocab_size=140, special_tokens=["<unk>", "</s>"], show_progress=False, **kw)
    return train(models.BPE(unk_token="<unk>", **kw), trainer, pre, decoder)


def word_piece(cleanup):
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    t = train(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=cleanup), normalizers.BertNormalizer(lowercase=True))
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return t


def llama(first):
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    kw = dict(byte_fallback=True, fuse_unk=True)
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", "<s>", "</s>"] + bytes_, show_progress=False)
    corpus = [text.replace("日本", "").replace("é", "e") for text in CORPUS]
    t = Tokenizer(models.BPE(unk_token="<unk>", **kw))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False) if first else None
    t.normalizer = None if first else normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.train_from_iterator(corpus, trainer)
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # The bytes are tokens of the model, not added ones.
    j = json.loads(t.to_str())
    j["added_tokens"] = [a for a in j["added_tokens"] if not a["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(j))


def added(t, end=True):
    t.add_tokens([AddedToken("WORD", single_word=True), AddedToken("Quokka-7"), AddedToken("日本"), AddedToken("[l]", lstrip=True), AddedToken("[r]", rstrip=True, normalized=False)])
    t.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<|user|>", rstrip=True), AddedToken("wordy", single_word=True)])
    # Behind a normalizer that changes it, the library no longer knows that such a token is special, and shows it.
    t.add_special_tokens([AddedToken("</s>", normalized=True)] if end else [])
    return t


def kinds():
    yield "added", added(byte_level()), FAST, {}
    yield "added, lower case", added(byte_level(normalizer=normalizers.Lowercase())), FAST, {}
    yield "byte-level, normalizer", train(models.BPE(), trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()), pre_tokenizers.Split(tokenizers.Regex(r"\s+"), "merged_with_next"), decoders.ByteLevel(), normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.ByteLevel()])), FAST, {}
    yield "BPE with Metaspace", bpe(pre=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()), FAST | {"bos_token": "</s>", "eos_token": "</s>"}, {}
    yield "Metaspace, first", added(bpe(pre=pre_tokenizers.Metaspace(prepend_scheme="first"), decoder=decoders.Metaspace(prepend_scheme="first"))), FAST, {}
    yield "Metaspace, never", bpe(pre=pre_tokenizers.Metaspace(prepend_scheme="never"), decoder=decoders.Metaspace(prepend_scheme="never")), FAST, {}
    yield "Unigram", train(models.Unigram(), trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>", special_tokens=["<unk>", "</s>"], show_progress=False), pre_tokenizers.Metaspace(), decoders.Metaspace(), normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])), FAST, {}
    yield "WordPiece", word_piece(True), FAST, {}
    yield "WordPiece, no cleanup", word_piece(False), FAST, {}
    yield "byte fallback", added(llama(False), end=False), FAST, {}
    yield "byte fallback, first", llama(True), FAST, {}
    yield "suffix", bpe(pre=pre_tokenizers.Whitespace(), decoder=decoders.BPEDecoder("</w>"), end_of_word_suffix="</w>"), FAST, {}
    yield "CTC", train(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>", "|"], show_progress=False), pre_tokenizers.Split("", "isolated"), decoders.CTC()), FAST, {}
    yield "words, no decoder", train(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], show_progress=False), pre_tokenizers.WhitespaceSplit()), FAST, {}
    yield "cut and filled", set_call(byte_level()), FAST, {}
    spaced = byte_level(); spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    yield "prefix space, fast", spaced, FAST | {"add_prefix_space": False}, {}
    yield "prefix space, GPT-2", spaced, {"tokenizer_class": "GPT2Tokenizer"}, {}
    yield "prefix space, no class", spaced, None, {}
    yield "prefix space, GPT-2, on", byte_level(), {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}, {}
    plain = json.loads(byte_level().to_str())["model"]
    slow = {"vocab.json": plain["vocab"], "merges.txt": "#version: 0.2\n" + "\n".join(" ".join(m) for m in plain["merges"]) + "\n"}
    n = len(plain["vocab"])
    older = {"added_tokens.json": {"<mask>": n, "Quokka-7": n + 1, "<|endoftext|>": n + 2}, "special_tokens_map.json": {"mask_token": {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}, "eos_token": "<|endoftext|>"}}
    yield "slow, old", None, {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}, slow | older
    entries = {str(n): dict(content="<mask>", lstrip=True, rstrip=False, single_word=False, normalized=False, special=True), str(n + 1): dict(content="Quokka-7", lstrip=False, rstrip=False, single_word=False, normalized=True, special=False), str(n + 2): dict(content="<|endoftext|>", lstrip=False, rstrip=False, single_word=False, normalized=True, special=True)}
    yield "slow, new", None, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_eos_token": True, "added_tokens_decoder": entries}, slow | {"special_tokens_map.json": {"eos_token": "not read"}}
    yield "fast, further tokens", byte_level(), FAST | {"extra_special_tokens": ["<mask>"], "user_token": "<|user|>", "eos_token": "</s>"}, {}


def set_call(t):
    t.enable_truncation(4)
    t.enable_padding(length=6)
    return t


def entry(name, t, config, files):
    files = dict(files)
    if t is not None:
        files["tokenizer.json"] = json.loads(t.to_str())
    if config is not None:
        files["tokenizer_config.json"] = config
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            (pathlib.Path(folder) / file).write_text(content if isinstance(content, str) else json.dumps(content))
        (pathlib.Path(folder) / "config.json").write_text('{"model_type": "gpt2"}')
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        encode = lambda text, literal, around: tokenizer(text, split_special_tokens=literal, add_special_tokens=around)["input_ids"]
        texts = []
        for text in TEXTS:
            ids = encode(text, False, False)
            texts.append(dict(text=text, ids=ids, literal=encode(text, True, False), document=encode(text, False, True), decoded=tokenizer.decode(ids)))
        draw, rows = random.Random(name), len(tokenizer)
        sequences = [[draw.randrange(rows) for _ in range(n)] for n in (1, 2, 5, 30, 200)] + [t["ids"] for t in texts]
        if "fallback" in name:
            of = lambda text: [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in text]
            sequences += [of("日本".encode()) + [300] + of(b"\xe6\x97") + [301], of("日".encode() + b"\xff") + [300], of("é".encode()[:1])]
        sequences = [dict(ids=ids, text=tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for ids in sequences]
    return dict(kind=name, rows=rows, files=files, eos=tokenizer.eos_token, texts=texts, sequences=sequences)


if __name__ == "__main__":
    made = {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__}
    entries = [entry(*kind) for kind in kinds()]
    print(json.dumps({"versions": made, "kinds": []}, ensure_ascii=False)[:-2] + "\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries) + "\n]}")
