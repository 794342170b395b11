//! Names of tensors: what GPT-2 calls its own, and by which names other architectures are known.
//!
//! Knows strings and shapes only.

use nanoinfer_shared::Geometry;

/// What programs put before the names: data-parallel and compiled models, language models around the transformer.
const PREFIXES: [&str; 4] = ["_orig_mod.", "module.", "model.", "transformer."];

/// Tensors by which other architectures are known (any name that contains the text), and what sets them apart.
const OTHERS: [(&str, &str, &str); 10] = [
    (
        "attn.attention.q_proj.weight",
        "GPT-Neo",
        "every other layer attends to 256 tokens only, and scores are not scaled",
    ),
    (".attn.q_proj.weight", "GPT-J", "positions are rotations, and attention and MLP run side by side"),
    (
        ".attn.c_q.weight",
        "nanochat",
        "positions are rotations, norms have no weights, and the MLP is squared ReLU without biases",
    ),
    ("self_attn.q_proj.weight", "Llama-like", "positions are rotations, norms are RMS, and the MLP is gated"),
    ("self_attn.qkv_proj.weight", "Phi-like", "positions are rotations, norms are RMS, and the MLP is gated"),
    ("self_attn.k_proj.weight", "OPT-like", "queries, keys and values are separate, and positions are offset"),
    ("attention.query_key_value.weight", "GPT-NeoX or Bloom", "positions are rotations or biases"),
    ("decoder.layers.", "decoder of fairseq or OPT", "its layers are laid out differently"),
    ("encoder.layer.", "BERT-like", "it encodes, and cannot continue a text"),
    ("relative_attention_bias", "T5-like", "it translates from an encoder's output"),
];

/// Most characters of a text from a file in a message.
const SHOWN: usize = 200;

/// A text from a file as a message may have it: cut where it is long, and without what would move a cursor or begin a line.
pub fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    if shown.chars().any(|c| escaped(c).is_some()) {
        shown = shown.chars().map(|c| escaped(c).unwrap_or(c.into())).collect();
    }
    shown
}

/// How a character that is not printed as itself is written.
fn escaped(c: char) -> Option<String> {
    let as_it_is = matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    (!as_it_is).then(|| c.escape_debug().collect())
}

/// A name without the prefixes that programs put before it.
pub(super) fn bare(name: &str) -> &str {
    let mut bare = name;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| bare.strip_prefix(prefix)) {
        bare = rest;
    }
    bare
}

/// Causal masks that transformers and nanoGPT stored with the weights; `attn.c_attn.bias` is none.
pub(super) fn is_mask(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}

/// The architecture that a tensor of this name belongs to, and what sets it apart, if that is not GPT-2.
pub(super) fn other_family(name: &str) -> Option<(&'static str, &'static str)> {
    OTHERS.iter().find(|(part, ..)| name.contains(part)).map(|&(_, family, why)| (family, why))
}

/// The layer of a name `h.{layer}.…`, and the rest of it.
pub(super) fn in_layer(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("h.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// Names and shapes of all tensors of a GPT-2 of this geometry, matrices as Conv1D has them: `[in, out]`.
pub fn expected(geometry: &Geometry) -> impl Iterator<Item = (String, Vec<usize>)> + use<'_> {
    let (v, c) = (geometry.vocab_size, geometry.n_embd);
    let outside = [
        ("wte.weight", vec![v, c]),
        ("wpe.weight", vec![geometry.n_positions, c]),
        ("ln_f.weight", vec![c]),
        ("ln_f.bias", vec![c]),
    ];
    let head = (!geometry.tie_word_embeddings).then(|| ("lm_head.weight", vec![v, c]));
    let layers = (0..geometry.n_layer)
        .flat_map(move |layer| of_layer(geometry).map(|(name, shape)| (format!("h.{layer}.{name}"), shape)));
    outside.into_iter().chain(head).map(|(name, shape)| (name.to_owned(), shape)).chain(layers)
}

/// Names below `h.{layer}.`, and shapes.
pub(super) fn of_layer(geometry: &Geometry) -> [(&'static str, Vec<usize>); 12] {
    let (c, f) = (geometry.n_embd, geometry.n_inner);
    [
        ("ln_1.weight", vec![c]),
        ("ln_1.bias", vec![c]),
        ("attn.c_attn.weight", vec![c, 3 * c]),
        ("attn.c_attn.bias", vec![3 * c]),
        ("attn.c_proj.weight", vec![c, c]),
        ("attn.c_proj.bias", vec![c]),
        ("ln_2.weight", vec![c]),
        ("ln_2.bias", vec![c]),
        ("mlp.c_fc.weight", vec![c, f]),
        ("mlp.c_fc.bias", vec![f]),
        ("mlp.c_proj.weight", vec![f, c]),
        ("mlp.c_proj.bias", vec![c]),
    ]
}
