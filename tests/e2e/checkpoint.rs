//! Checkpoints of real model_shape with random weights: size and speed do not depend on the values.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use serde_json::{Map, Value, json};

/// GPT-2's sizes.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) n_layer: usize,
    pub(crate) n_head: usize,
    pub(crate) n_embd: usize,
}

pub(crate) const VOCABULARY: usize = 50257;
pub(crate) const POSITIONS: usize = 1024;

/// Writes config.json and model.safetensors in bf16, and GPT-2's tokenizer, to `folder`.
pub(crate) fn write_random_gpt2(folder: &Path, tokenizer: &Path, sizes: Sizes) {
    let Sizes { n_layer, n_head, n_embd: c } = sizes;
    let config = json!({ "model_type": "gpt2", "n_layer": n_layer, "n_head": n_head, "n_embd": c,
                         "n_positions": POSITIONS, "vocab_size": VOCABULARY });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(tokenizer.join(file), folder.join(file)).unwrap();
    }
    let mut tensors =
        vec![("wte.weight".to_owned(), vec![VOCABULARY, c]), ("wpe.weight".to_owned(), vec![POSITIONS, c])];
    for layer in 0..n_layer {
        for (name, shape) in [
            ("ln_1.weight", vec![c]),
            ("ln_1.bias", vec![c]),
            ("ln_2.weight", vec![c]),
            ("ln_2.bias", vec![c]),
            ("attn.c_attn.weight", vec![c, 3 * c]),
            ("attn.c_attn.bias", vec![3 * c]),
            ("attn.c_proj.weight", vec![c, c]),
            ("attn.c_proj.bias", vec![c]),
            ("mlp.c_fc.weight", vec![c, 4 * c]),
            ("mlp.c_fc.bias", vec![4 * c]),
            ("mlp.c_proj.weight", vec![4 * c, c]),
            ("mlp.c_proj.bias", vec![c]),
        ] {
            tensors.push((format!("h.{layer}.{name}"), shape));
        }
    }
    tensors.extend([("ln_f.weight".to_owned(), vec![c]), ("ln_f.bias".to_owned(), vec![c])]);

    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 2;
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();

    // Small numbers of either sign: bf16 of magnitude 2^-6 to 2^-5, as GPT-2's initial weights.
    let noise: Vec<u8> = (0..1u32 << 20)
        .flat_map(|i| {
            let random = i.wrapping_mul(2_654_435_761) >> 8;
            (((random & 1) << 15 | 0x3c80 | (random >> 1) & 0x7f) as u16).to_le_bytes()
        })
        .collect();
    let mut left = end;
    while left > 0 {
        let chunk = left.min(noise.len());
        file.write_all(&noise[..chunk]).unwrap();
        left -= chunk;
    }
    file.flush().unwrap();
}
