//! What llama.cpp calls the tensors of every family, in its GGUF files.
//!
//! Reference: `gguf-py/gguf/constants.py` of llama.cpp, `TENSOR_NAMES`.

use crate::model::family::{Names, QkvNames};

pub(super) const GGUF: Names = Names {
    written_prefix: "",
    embedding: "token_embd",
    positions: "position_embd",
    head: "output",
    final_norm: "output_norm",
    layers: "blk.",
    attention_norm: "attn_norm",
    qkv: QkvNames::Separate(["attn_q", "attn_k", "attn_v"]),
    qk_norm: ["attn_q_norm", "attn_k_norm"],
    attention_output: "attn_output",
    mlp_norm: "ffn_norm",
    gate: "ffn_gate",
    up: "ffn_up",
    down: "ffn_down",
    value_gate: "",
    stream: None,
    biases_may_be_absent: false,
};
