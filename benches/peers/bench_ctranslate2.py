"""CTranslate2. usage: bench_ctranslate2.py MODEL COMPUTE_TYPE BATCH PROMPT_TOKENS TOKENS THREADS
Prints a line of JSON. It reports no time of its own, so a decode is the time of many tokens less that of one."""
import json, random, sys, time

import ctranslate2

path, compute_type = sys.argv[1:3]
batch, prompt_tokens, tokens, threads = map(int, sys.argv[3:7])
generator = ctranslate2.Generator(path, device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads)
vocabulary = json.load(open(f"{path}/vocabulary.json", encoding="utf-8"))
random.seed(0)
prompts = [[vocabulary[random.randrange(50000)] for _ in range(prompt_tokens)] for _ in range(batch)]


def seconds(length):
    begun = time.time()
    generator.generate_batch(prompts, max_length=length, min_length=length, sampling_topk=1,
                             include_prompt_in_result=False, end_token=[], max_batch_size=batch)
    return time.time() - begun


seconds(2)
for _ in range(2):
    first = seconds(1)
    all_tokens = seconds(1 + tokens)
print(json.dumps({"prefill": batch * prompt_tokens / first, "decode": batch * tokens / (all_tokens - first)}))
