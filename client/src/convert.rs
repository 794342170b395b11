//! `nanoinfer convert`: any checkpoint that can be read, as a folder that Hugging Face's libraries read too.
//!
//! `model.safetensors` with transformers' names and layout, `config.json`, and whatever of a tokenizer there is.

use std::{fs, path::PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_launch::{
    environment, json,
    model::{self, ResolvedModel, Version, has_tokenizer},
    output, say,
};
use serde_json::{Map, Value};

use crate::failure::Failure;

/// Files that belong to a model and are no weights.
const COMPANIONS: [&str; 8] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
];

#[derive(Debug, Args)]
pub(crate) struct ConvertOptions {
    /// Folder, checkpoint file, hub id or short name.
    #[arg(value_name = "MODEL")]
    model: String,
    /// Folder to write; made if it is not there.
    #[arg(value_name = "FOLDER")]
    to: PathBuf,
    /// Branch, tag or commit of a hub model.
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Which checkpoint of a folder of nanochat, by its step [default: the last].
    #[arg(long, value_name = "STEP")]
    step: Option<u64>,
}

pub(crate) fn run(options: &ConvertOptions) -> Result<(), Failure> {
    let caches = environment::caches();
    let version = Version { revision: options.revision.as_deref(), step: options.step };
    let model = model::resolve_checkpoint(Some(&options.model), version, &caches).map_err(Failure::usage)?;
    let to = &options.to;
    let (weights, config) = (to.join("model.safetensors"), to.join("config.json"));
    let companions: Vec<&str> = COMPANIONS.into_iter().filter(|name| model.folder.join(name).exists()).collect();
    // Nothing is written over, the model's own files least of all.
    let mut made = companions.iter().map(|name| to.join(name)).chain([weights.clone(), config.clone()]);
    if let Some(there) = made.find(|path| path.exists()) {
        let error = anyhow!("{} exists\n  hint: name another folder, or move it away", there.display());
        return Err(Failure::usage(error));
    }
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let checkpoint = Checkpoint::open(&model.weights).map_err(Failure::usage)?;
    // Under its name only when it is whole.
    let part = weights.with_extension("part");
    checkpoint.write_safetensors(&model.shape, &part).map_err(anyhow::Error::from)?;
    fs::rename(&part, &weights).with_context(|| format!("cannot rename {}", part.display()))?;
    fs::write(&config, config_text(&model, &checkpoint)?)
        .with_context(|| format!("cannot write {}", config.display()))?;
    for name in companions {
        fs::copy(model.folder.join(name), to.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    if !has_tokenizer(to) {
        say("note: it has no tokenizer yet, and needs one to be served: tokenizer.json, or vocab.json and merges.txt");
    }
    output::write(format_args!("{}\n", to.display()))?;
    Ok(())
}

/// The model's own configuration, where it has one, with what the checkpoint knew better.
fn config_text(model: &ResolvedModel, checkpoint: &Checkpoint) -> anyhow::Result<String> {
    let mut config: Map<String, Value> = match fs::read(model.folder.join("config.json")) {
        Ok(text) => match json::parse(&text).context("config.json")? {
            Value::Object(config) => config,
            _ => bail!("config.json is no JSON object"),
        },
        Err(_) => Map::new(),
    };
    if let Value::Object(known) = (checkpoint.family().write_config)(&model.shape) {
        config.extend(known);
    }
    config.retain(|field, value| {
        let is_json = json::not_finite_fields(value).is_empty();
        if !is_json {
            say(format_args!("note: `{field}` of config.json is left out: it has a number that JSON has not"));
        }
        is_json
    });
    Ok(format!("{:#}\n", Value::Object(config)))
}
