"""A model that takes its time: GPT-2 of random weights with the demo model's tokenizer. What it says is noise, and long."""

import json
import pathlib
import shutil

import numpy as np

LAYERS, HEADS, WIDTH, POSITIONS = 12, 12, 768, 768


def write(demo, folder):
    """Writes the model into `folder`, unless it is there."""
    demo, folder = pathlib.Path(demo), pathlib.Path(folder)
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((demo / "config.json").read_text())
    config.update(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, n_positions=POSITIONS)
    rng = np.random.default_rng(1)
    shapes = {"wte.weight": (config["vocab_size"], WIDTH), "wpe.weight": (POSITIONS, WIDTH)}
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    for layer in range(LAYERS):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{norm}.weight": (WIDTH,), f"h.{layer}.{norm}.bias": (WIDTH,)}
        for name, rows, columns in (
            ("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1),
        ):
            shapes[f"h.{layer}.{name}.weight"] = (rows * WIDTH, columns * WIDTH)
            shapes[f"h.{layer}.{name}.bias"] = (columns * WIDTH,)
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + 2 * int(np.prod(shape))]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            is_gain = ".ln_" in f".{name}" and name.endswith(".weight")
            values = np.ones(shape, "<f4") if is_gain else 0.05 * rng.standard_normal(shape, "<f4")
            file.write((values.view("<u4") >> 16).astype("<u2").tobytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    # Last, as it says that all is there.
    (folder / "config.json").write_text(json.dumps(config, indent=2))
