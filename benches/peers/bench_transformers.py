"""transformers on PyTorch. usage: bench_transformers.py MODEL DTYPE BATCH PROMPT_TOKENS TOKENS THREADS
Prints a line of JSON; the first of two rounds is a warm-up."""
import json, sys, time

import torch
from transformers import GPT2LMHeadModel

path, dtype = sys.argv[1:3]
batch, prompt_tokens, tokens, threads = map(int, sys.argv[3:7])
torch.set_num_threads(threads)
model = GPT2LMHeadModel.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
ids = torch.randint(0, 50257, (batch, prompt_tokens))
with torch.inference_mode():
    for _ in range(2):
        begun = time.time()
        out = model(ids, use_cache=True, logits_to_keep=1)
        prefill_s = time.time() - begun
        past, following = out.past_key_values, out.logits[:, -1:].argmax(-1)
        begun = time.time()
        for _ in range(tokens):
            out = model(following, past_key_values=past, use_cache=True)
            past, following = out.past_key_values, out.logits[:, -1:].argmax(-1)
        decode_s = time.time() - begun
print(json.dumps({"prefill": batch * prompt_tokens / prefill_s, "decode": batch * tokens / decode_s}))
