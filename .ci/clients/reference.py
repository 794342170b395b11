"""GPT-2 in numpy, in double precision, straight from the equations: what log-likelihoods are held against."""

import json
import pathlib

import numpy as np


def weights(path):
    """Tensors of a safetensors file, in f64."""
    data = pathlib.Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data[start:end], "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(data[start:end], {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
        tensors[name.removeprefix("transformer.")] = values.reshape(entry["shape"]).astype(np.float64)
    return tensors


class Gpt2:
    """A folder's model."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.config = json.loads((folder / "config.json").read_text())
        assert self.config.get("activation_function", "gelu_new") == "gelu_new"
        self.w = weights(folder / "model.safetensors")

    def log_probabilities(self, ids):
        """[T, V]: of every token after each position."""
        w, heads = self.w, self.config["n_head"]
        x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
        mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
        for i in range(self.config["n_layer"]):
            layer = f"h.{i}."
            h = self._linear(self._norm(x, layer + "ln_1"), layer + "attn.c_attn")
            q, k, v = (part.reshape(len(ids), heads, -1).swapaxes(0, 1) for part in np.split(h, 3, axis=-1))
            scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + mask
            attention = np.exp(scores - scores.max(-1, keepdims=True))
            attention /= attention.sum(-1, keepdims=True)
            x = x + self._linear((attention @ v).swapaxes(0, 1).reshape(x.shape), layer + "attn.c_proj")
            h = self._linear(self._norm(x, layer + "ln_2"), layer + "mlp.c_fc")
            h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
            x = x + self._linear(h, layer + "mlp.c_proj")
        logits = self._norm(x, "ln_f") @ w["wte.weight"].T
        top = logits.max(-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))

    def log_likelihood(self, context, continuation):
        """Sum over the continuation, and whether each of its tokens is the most likely."""
        rows = self.log_probabilities(context + continuation)[len(context) - 1 : -1]
        return rows[np.arange(len(continuation)), continuation].sum(), bool((rows.argmax(-1) == continuation).all())

    def _linear(self, x, name):
        return x @ self.w[name + ".weight"] + self.w[name + ".bias"]

    def _norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.get("layer_norm_epsilon", 1e-5))
        return centred / scale * self.w[name + ".weight"] + self.w[name + ".bias"]
