"""Writes a GGUF file with its weights in another type, by llama.cpp. usage: requantise.py FROM TO BF16|Q8_0"""
import sys

import llama_cpp as llama

source, to, kind = sys.argv[1:4]
options = llama.llama_model_quantize_default_params()
options.ftype = {"Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0, "BF16": llama.LLAMA_FTYPE_MOSTLY_BF16}[kind]
options.allow_requantize = True
if llama.llama_model_quantize(source.encode(), to.encode(), options) != 0:
    raise SystemExit(f"llama.cpp could not write {to}")
