"""CORE of the synthetic bundle by nanochat's own evaluator, for its own small checkpoint of the newest generation.

    python make_nanochat_core.py PATH_OF_A_NANOCHAT_CHECKOUT      (at 92d63d4; needs torch, tiktoken, rustbpe, pyyaml, jinja2, requests, …)

Writes nanochat_core.json beside itself.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = HERE.parents[1] / "golden/nanochat"


def main():
    sys.path.insert(0, sys.argv[1])
    with tempfile.TemporaryDirectory() as base:
        os.environ["NANOCHAT_BASE_DIR"] = base
        shutil.copytree(MODELS / "E", f"{base}/base_checkpoints/d4")
        shutil.copytree(MODELS / "tokenizer", f"{base}/tokenizer")
        shutil.copytree(HERE / "bundle", f"{base}/eval_bundle")
        import torch
        from nanochat.checkpoint_manager import load_model
        from scripts.base_eval import evaluate_core

        torch.set_num_threads(1)
        model, tokenizer, meta = load_model("base", torch.device("cpu"), phase="eval")
        report = evaluate_core(model, tokenizer, torch.device("cpu"), max_per_task=-1)
        report["model"], report["step"], report["torch"] = "E", meta["step"], torch.__version__
        (HERE / "nanochat_core.json").write_text(json.dumps(report, indent=1) + "\n")


main()
