"""llama.cpp by its Python binding. usage: bench_llama_cpp.py MODEL BATCH PROMPT_TOKENS TOKENS THREADS
Prints a line of JSON; the first of two rounds is a warm-up."""
import json, random, sys, time

import llama_cpp as llama

path = sys.argv[1]
batch, prompt_tokens, tokens, threads = map(int, sys.argv[2:6])
llama.llama_backend_init()
model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
options = llama.llama_context_default_params()
options.n_ctx = batch * (prompt_tokens + tokens + 2)
options.n_batch = max(512, batch * prompt_tokens)
options.n_ubatch = 512
options.n_seq_max = batch
options.n_threads = options.n_threads_batch = threads
context = llama.llama_init_from_model(model, options)
random.seed(0)


def decode(rows):
    """Computes (token, position, sequence, wanted) rows; returns the seconds."""
    step = llama.llama_batch_init(len(rows), 0, 1)
    for i, (token, position, sequence, wanted) in enumerate(rows):
        step.token[i], step.pos[i], step.n_seq_id[i], step.logits[i] = token, position, 1, wanted
        step.seq_id[i][0] = sequence
    step.n_tokens = len(rows)
    begun = time.time()
    code = llama.llama_decode(context, step)
    llama.llama_synchronize(context)
    spent = time.time() - begun
    llama.llama_batch_free(step)
    assert code == 0, code
    return spent


def token():
    return random.randrange(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)))


for _ in range(2):
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    prompt = [(token(), p, s, p == prompt_tokens - 1) for s in range(batch) for p in range(prompt_tokens)]
    prefill_s = decode(prompt)
    decode_s = sum(decode([(token(), prompt_tokens + i, s, True) for s in range(batch)]) for i in range(tokens))
print(json.dumps({"prefill": batch * prompt_tokens / prefill_s, "decode": batch * tokens / decode_s}))
