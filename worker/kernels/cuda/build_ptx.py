#!/usr/bin/env python3
"""Compiles decoder.cu to PTX, once for each element type; needs no GPU.

    python3 -m pip install nvidia-cuda-nvrtc-cu12==12.0.140
    python3 build_ptx.py            writes ptx/decoder_f32.ptx and those of f16, bf16 and int8
    python3 build_ptx.py --check    compares them instead

The compiler is pinned: its PTX (version 8.0) is understood by every driver since CUDA 12.0, and the same bytes come out each time.
The first line of a PTX file has a digest of the sources, which a test compares where there is no compiler.
"""

import ctypes
import glob
import hashlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = [
    "decoder.cu", "device.h", "arguments.h", "tiles.h", "rows.h", "stream.h", "cache.h", "attention.h", "project.h",
    "answer.h",
]
# What ELEMENT and WEIGHTS are.
ELEMENTS = {"f32": (32, 32), "f16": (16, 16), "bf16": (19, 19), "int8": (19, 8)}
VERSION = (12, 0)


def library():
    folders = [os.path.join(path, "nvidia/cuda_nvrtc/lib") for path in sys.path]
    found = [name for folder in folders for name in glob.glob(os.path.join(folder, "libnvrtc.so.12"))]
    if not found:
        sys.exit("libnvrtc.so.12 not found: pip install nvidia-cuda-nvrtc-cu12==12.0.140")
    nvrtc = ctypes.CDLL(found[0])
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if (major.value, minor.value) != VERSION:
        sys.exit(f"{found[0]} is NVRTC {major.value}.{minor.value}, not {VERSION[0]}.{VERSION[1]}")
    return nvrtc


def strings(values):
    return (ctypes.c_char_p * len(values))(*[value.encode() for value in values])


def text_of(program, size_of, read):
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert read(program, text) == 0
    return text.value.decode()


def compile_for(nvrtc, texts, element):
    program = ctypes.c_void_p()
    main, headers = SOURCES[0], SOURCES[1:]
    status = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), texts[main].encode(), main.encode(),
        len(headers), strings([texts[name] for name in headers]), strings(headers),
    )
    assert status == 0, status
    of_others, of_weights = ELEMENTS[element]
    options = ["--gpu-architecture=compute_80", "--std=c++17", f"-DELEMENT={of_others}", f"-DWEIGHTS={of_weights}"]
    status = nvrtc.nvrtcCompileProgram(program, len(options), strings(options))
    if status != 0:
        sys.exit(text_of(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog))
    return text_of(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)


def main():
    texts = {name: open(os.path.join(HERE, name), encoding="utf-8").read() for name in SOURCES}
    digest = hashlib.sha256("".join(texts[name] for name in SOURCES).encode()).hexdigest()
    nvrtc = library()
    stale = []
    for element in ELEMENTS:
        ptx = f"// {element}, sources {digest}\n" + compile_for(nvrtc, texts, element)
        path = os.path.join(HERE, "ptx", f"decoder_{element}.ptx")
        if "--check" not in sys.argv[1:]:
            with open(path, "w", encoding="utf-8") as file:
                file.write(ptx)
        elif not os.path.exists(path) or open(path, encoding="utf-8").read() != ptx:
            stale.append(os.path.basename(path))
    if stale:
        sys.exit(f"not what the sources give: {', '.join(stale)}; run build_ptx.py")


if __name__ == "__main__":
    main()
