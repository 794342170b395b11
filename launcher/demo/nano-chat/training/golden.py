"""Writes golden.json of the folder given: prompts, ids, and greedy continuations by transformers in f32 with their smallest margin.

usage: golden.py FOLDER (with the weights and the tokenizer). Keeps the prompts of the golden.json that is there.
"""

import json
import sys

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel


def main():
    folder = sys.argv[1]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    end = model.config.eos_token_id
    with open(f"{folder}/golden.json") as file:
        prompts = [case["prompt"] for case in json.load(file)]
    cases = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids
        greedy, margins = [], []
        while not greedy or (greedy[-1] != end and len(greedy) < 96):
            with torch.no_grad():
                logits = model(torch.tensor([ids + greedy])).logits[0, -1]
            best = logits.topk(2).values
            greedy.append(int(logits.argmax()))
            margins.append(float(best[0] - best[1]))
        text = tokenizer.decode([token for token in greedy if token != end]).strip()
        cases.append({"prompt": prompt, "prompt_ids": ids, "greedy_ids": greedy, "min_top2_margin": round(min(margins), 4), "text": text})
    with open(f"{folder}/golden.json", "w") as file:
        json.dump(cases, file, indent=1)


if __name__ == "__main__":
    main()
