//! What a checkpoint of nanochat is: sizes from the file beside it, the generation from the tensors that it has.
//!
//! ```text
//! model_000650.pt   the state dict        meta_000650.json   {"model_config": {"sequence_len", "vocab_size", "n_layer", …}, …}
//!
//! no resid_lambdas                          A
//! resid_lambdas, no value_embeds            B
//! value_embeds, ve_gate [KV, 32]            C    logits capped at 15, from March 3 to 9, 2026 at 20: no tensor tells
//! value_embeds, ve_gate [KV, 12]            D
//! the same, smear_gate                      E
//! ```
//! Both are found by name only; whether a generation's other tensors are there, and no more, is for [`super::Checkpoint::check`]
//! to say. Reference: `nanochat/gpt.py` and `checkpoint_manager.py` from commit 3a5e0bc to 92d63d4.

use std::path::{Path, PathBuf};

use nanoinfer_shared::{
    json,
    model::config::{one_size, present},
};
use serde_json::{Value, json};

use super::{shown::shown, tensor::MAX_TENSORS};

/// Positions that it computes rotations for, in lengths of its training.
const CONTEXTS: usize = 10;
/// Of f32, which torch adds in norms where nothing is said.
const EPSILON: f64 = f32::EPSILON as f64;
/// Channels of the embedding that the gate of the token before reads.
const SMEAR_CHANNELS: usize = 24;

/// The file with the sizes of a checkpoint, which is called `model_` and a step.
pub(super) fn meta_of(model: &Path) -> Option<PathBuf> {
    let step = model.file_name()?.to_str()?.strip_prefix("model_")?.strip_suffix(".pt")?;
    Some(model.with_file_name(format!("meta_{step}.json")))
}

/// The text of a `config.json` by what `meta` says and which tensors there are, of these sizes.
///
/// # Errors
/// Says which size is missing, or what sets the checkpoint apart from all generations.
pub(super) fn config(meta: &str, sizes: &dyn Fn(&str) -> Option<Vec<usize>>) -> Result<String, String> {
    let meta = json::parse(meta.as_bytes()).map_err(|error| error.to_string())?;
    let stated = present(&meta, "model_config").ok_or("it has no `model_config`")?;
    let size = |name: &str| {
        let size = present(stated, name).and_then(one_size);
        size.ok_or_else(|| format!("`model_config.{name}` should be a whole number from 1 to 16777216"))
    };
    let (layers, width, trained) = (size("n_layer")?, size("n_embd")?, size("sequence_len")?);
    if layers > MAX_TENSORS {
        return Err(format!("`model_config.n_layer` is {layers}, and no checkpoint has so many tensors"));
    }
    let mut config = json!({
        "model_type": "nanochat",
        "vocab_size": size("vocab_size")?,
        "max_position_embeddings": CONTEXTS * trained,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": size("n_head")?,
        "num_key_value_heads": size("n_kv_head")?,
        "rms_norm_eps": EPSILON,
        "final_logit_softcapping": 15.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "rotary_rounding": "bfloat16",
        "tie_word_embeddings": false,
    });
    let Some(_) = sizes("resid_lambdas") else { return Ok(config.to_string()) };
    config["model_type"] = "nanochat_later".into();
    config["residual_lambdas"] = true.into();
    // Of the block that has one whatever their number.
    let gate = sizes(&format!("h.{}.attn.ve_gate.weight", layers - 1)).and_then(|sizes| sizes.get(1).copied());
    let is_latest = sizes("smear_gate.weight").is_some();
    if sizes(&format!("value_embeds.{}.weight", layers - 1)).is_some() && gate.is_none() {
        return Err("its tables of values have no gates: a trial of January 16, 2026, which is not served".into());
    }
    let short = match gate {
        None | Some(32) if !is_latest => trained / 2,
        Some(12) => 128 * trained.div_ceil(if is_latest { 512 } else { 384 }),
        other => {
            let channels = other.map_or_else(|| "none".to_owned(), |channels| channels.to_string());
            return Err(format!("its gates of values read {channels} channels, those of known generations 32 or 12"));
        }
    };
    if let Some(channels) = gate {
        config["value_gate_channels"] = channels.into();
        config["value_gate_factor"] = if channels == 12 { 3.0 } else { 2.0 }.into();
    }
    if gate == Some(12) {
        config["rope_parameters"]["rope_theta"] = 100_000.0.into();
        config["rotary_rounding"] = "as_computed".into();
        config["qk_norm_factor"] = if is_latest { 1.2 } else { 1.15 }.into();
    }
    if is_latest {
        config["smear_gate_channels"] = SMEAR_CHANNELS.into();
        config["backout"] = true.into();
    }
    if let Some(pattern) = present(stated, "window_pattern") {
        config["attention_windows"] = windows(pattern, layers, short, trained)?.into();
    }
    if gate == Some(32) && !is_older(&meta) {
        tracing::warn!(
            "logits are capped at 15: this checkpoint may as well be one of March 3 to 9, 2026, which capped them at 20; that changes \
             probabilities, but no greedy answer; --logit-softcap 20 says so"
        );
    }
    Ok(config.to_string())
}

/// Whether it tells itself that it is older than the days in which the cap was another: what came into base checkpoints before is
/// missing.
fn is_older(meta: &Value) -> bool {
    meta.get("user_config").is_some() && meta.get("total_batch_size").is_none()
}

/// How many positions before its own each block sees: a letter a block, over and over, of which S is short; the last block sees all.
fn windows(pattern: &Value, layers: usize, short: usize, long: usize) -> Result<Vec<usize>, String> {
    let wrong =
        || format!("`model_config.window_pattern` should be letters S and L, got {}", shown(&json::show(pattern)));
    let letters = pattern.as_str().filter(|letters| !letters.is_empty()).ok_or_else(wrong)?;
    let of = |letter: char| match letter.to_ascii_uppercase() {
        'S' => Ok(short),
        'L' => Ok(long),
        _ => Err(wrong()),
    };
    let each = letters.chars().map(of).collect::<Result<Vec<_>, _>>()?;
    let mut windows: Vec<_> = each.into_iter().cycle().take(layers).collect();
    windows[layers - 1] = long;
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = r#"{"step":7,"model_config":{"sequence_len":2048,"vocab_size":65536,"n_layer":20,"n_head":10,"n_kv_head":10,"n_embd":1280,"window_pattern":"sSsL"},"user_config":{}}"#;
    const LATE: [(&str, [usize; 2]); 2] = [("resid_lambdas", [20, 0]), ("value_embeds.19.weight", [65536, 1280])];

    fn of(meta: &str, tensors: &[(&str, [usize; 2])]) -> Result<Value, String> {
        let sizes = |name: &str| Some(tensors.iter().find(|(known, _)| *known == name)?.1.to_vec());
        config(meta, &sizes).map(|text| json::parse(text.as_bytes()).unwrap())
    }

    fn with_gate(channels: usize) -> Vec<(&'static str, [usize; 2])> {
        [&LATE[..], &[("h.19.attn.ve_gate.weight", [10, channels])]].concat()
    }

    #[test]
    fn generations_are_told_by_their_tensors() {
        let theta = |config: &Value| config["rope_parameters"]["rope_theta"].as_f64().unwrap();
        let a = of(META, &[]).unwrap();
        assert_eq!((theta(&a), a.get("attention_windows"), a.get("residual_lambdas")), (10_000.0, None, None));
        let windows = |config: &Value| config["attention_windows"].as_array().unwrap()[16..].to_vec();
        let b = of(META, &LATE[..1]).unwrap();
        assert_eq!(
            (windows(&b), b.get("value_gate_factor")),
            (vec![1024.into(), 1024.into(), 1024.into(), 2048.into()], None)
        );
        let c = of(META, &with_gate(32)).unwrap();
        assert_eq!(
            (windows(&c)[0].as_u64(), c["value_gate_factor"].as_f64(), c.get("backout")),
            (Some(1024), Some(2.0), None)
        );
        let d = of(META, &with_gate(12)).unwrap();
        assert_eq!(
            (windows(&d)[0].as_u64(), theta(&d), d["qk_norm_factor"].as_f64()),
            (Some(768), 100_000.0, Some(1.15))
        );
        let mut tensors = with_gate(12);
        tensors.push(("smear_gate.weight", [1, 24]));
        let e = of(META, &tensors).unwrap();
        assert_eq!(
            (windows(&e)[0].as_u64(), &e["backout"], e["qk_norm_factor"].as_f64()),
            (Some(512), &true.into(), Some(1.2))
        );
    }

    #[test]
    fn what_is_of_no_generation_is_refused() {
        for (meta, tensors, words) in [
            (META, LATE.to_vec(), "no gates"),
            (META, with_gate(16), "read 16 channels"),
            (META, vec![LATE[0], ("smear_gate.weight", [1, 24])], "read none channels"),
            (&META.replace("sSsL", "SLX"), with_gate(12), "letters S and L, got \"SLX\""),
            (&META.replace(r#""n_layer":20"#, r#""n_layer":0"#), vec![], "n_layer"),
            // A window each: no memory holds so many.
            (&META.replace(r#""n_layer":20"#, r#""n_layer":1000000000000000"#), LATE[..1].to_vec(), "n_layer"),
            (&META.replace(r#""n_layer":20"#, r#""n_layer":16777216"#), LATE[..1].to_vec(), "so many tensors"),
            ("{}", vec![], "model_config"),
        ] {
            let error = of(meta, &tensors).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
