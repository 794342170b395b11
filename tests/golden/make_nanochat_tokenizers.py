#!/usr/bin/env python3
"""Vocabularies by chance as nanochat pickles them, and what tiktoken makes of texts with them.

usage: make_nanochat_tokenizers.py [ROUNDS [SEED]] > nanochat/random.json        (tiktoken==0.14.0)
Tokens are what rank-ordered merges may meet and training would not make: runs like `abababa` that overlap, tokens made by several pairs or
by none, ids in any order. Each vocabulary has the nine special tokens, which texts have too. A pickle is hexadecimal, its protocol 3, 4 or 5.
"""
import json, pickle, random, sys

import tiktoken

SPECIALS = [f"<|{name}|>" for name in ["bos", "user_start", "user_end", "assistant_start", "assistant_end", "python_start", "python_end", "output_start", "output_end"]]
HERE = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
WORDS = [
    HERE,
    HERE.replace("{1,2}", "{1,3}"),
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"(?s:.+)",
]
ALPHABETS = ["ab", "abc", "a", "aab ", "ab\n\r ", "ab12'", "aбв ", "a日本🦀", "tſsK '\u2019LlVE", "a\u00a0\u2028\u0085\u200b\u3000 \t", "e\u0301\u0903ª²½٣Ⅷ 7", "<|bos>_"]


def vocabulary(random, alphabet, size):
    tokens = [bytes([byte]) for byte in range(256)]
    if random.random() < 0.5:
        random.shuffle(tokens)
    made = [bytes([byte]) for byte in alphabet.encode()]
    known, runs = set(tokens), random.choice([0.0, 0.3, 1.0])
    for _ in range(50 * size):
        if len(tokens) == size:
            break
        if random.random() < runs:
            token = "".join(random.choices(alphabet, k=random.randint(1, 7))).encode() * random.choice([1, 1, 2, 3])
        else:
            token = random.choice(made) + random.choice(made)
        if len(token) < 40 and token not in known:
            known.add(token)
            tokens.append(token)
            made.append(token)
    if random.random() < 0.3:
        random.shuffle(tokens)
    return {token: id for id, token in enumerate(tokens)}


def text(random, alphabet):
    piece = "".join(random.choices(alphabet, k=random.choice([1, 3, 8, 20])))
    written = piece * random.choice([1, 1, 1, 2, 9])
    if random.random() < 0.1:
        written += random.choice(SPECIALS) + piece
    return written


def main(rounds=6, seed=1):
    chance = random.Random(seed)
    kinds = []
    for _ in range(rounds):
        alphabet, words = chance.choice(ALPHABETS), chance.choice(WORDS)
        ranks = vocabulary(chance, alphabet, chance.randint(300, 500 if rounds < 100 else 1500))
        specials = {special: len(ranks) + i for i, special in enumerate(SPECIALS)}
        encoding = tiktoken.Encoding("rustbpe", pat_str=words, mergeable_ranks=ranks, special_tokens=specials)
        texts = [text(chance, alphabet) for _ in range(20)]
        pickled = pickle.dumps(encoding, protocol=chance.choice([3, 4, 5]))
        kinds.append({"pickle": pickled.hex(), "texts": [{"text": t, "ids": encoding.encode_ordinary(t)} for t in texts]})
    json.dump({"tiktoken": tiktoken.__version__, "vocabularies": kinds}, sys.stdout, ensure_ascii=False, separators=(",", ":"))
    print()


main(*map(int, sys.argv[1:]))
