//! `nanoinfer inspect`: what a model holds, and how it would be split.
//!
//! Reads headers only. Text for people; nothing is loaded or started.

use std::{collections::BTreeMap, fs};

use clap::Args;
use nanoinfer_checkpoint::{Checkpoint, Format, Layout, shown};
use nanoinfer_launch::{
    ClusterConfig, environment,
    model::{self, ResolvedModel, Version, has_tokenizer},
    output,
    plan::Plan,
    size::ByteSize,
    text::ModelText,
};

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct InspectOptions {
    /// Folder, checkpoint file, hub id (org/name, org/name:Q4_K_M) or short name [default: the built-in nano-chat].
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// Branch, tag or commit of a hub model.
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Which checkpoint of a folder of nanochat, by its step [default: the last].
    #[arg(long, value_name = "STEP")]
    step: Option<u64>,
    /// Show who would hold what with this many ranks.
    #[arg(long, value_name = "N")]
    nproc: Option<usize>,
}

pub(crate) fn run(options: &InspectOptions) -> Result<(), Failure> {
    let InspectOptions { model: name, revision, step, nproc } = options;
    let caches = environment::caches();
    let version = Version { revision: revision.as_deref(), step: *step };
    let model = model::resolve_checkpoint(name.as_deref(), version, &caches).map_err(Failure::usage)?;
    let checkpoint = Checkpoint::open(&model.weights).map_err(Failure::usage)?;
    let mut text = model_and_files(&model, &checkpoint);
    if has_tokenizer(&model.folder) {
        let of_model = ModelText::load(&model.folder, &model.shape).map_err(Failure::usage)?;
        text += &of_text(&of_model, model.shape.vocab_size);
    } else {
        text += "tokenizer: none beside it, so that it cannot be served yet\n";
    }
    text += &tensors(&checkpoint);
    if let &Some(nproc) = nproc {
        let (model, revision, step) = (name.clone(), revision.clone(), *step);
        let config = ClusterConfig { model, revision, step, nproc, ..ClusterConfig::new(caches) };
        let plan = Plan::here(&config).map_err(Failure::usage)?;
        text += &format!("\n{plan}\n");
    }
    output::write(text)?;
    Ok(())
}

fn model_and_files(model: &ResolvedModel, checkpoint: &Checkpoint) -> String {
    let shape = &model.shape;
    let folder = model.folder.display().to_string();
    // A path that was typed says where it is.
    let place = if model.name == folder { String::new() } else { format!(" in {folder}") };
    let mut text = format!("{}{place}\n", model.name);
    text += &format!(
        "geometry: {}, {} layers, width {}, {} heads of {}{}, MLP of {} with {}{}, vocabulary of {}, {} positions\n",
        shape.model_type(),
        shape.layers,
        shape.width,
        shape.attention.heads,
        shape.attention.head_dim,
        match shape.attention.kv_heads {
            all if all == shape.attention.heads => String::new(),
            some => format!(" on {some} of keys and values"),
        },
        shape.mlp.inner,
        shape.mlp.activation.name(),
        if shape.mlp.gated { " as a gate" } else { "" },
        shape.vocab_size,
        shape.context
    );
    if shape.attention.scaled_by_layer {
        text += "attention: scores of layer l are divided by l + 1 as well\n";
    }
    text += &format!("positions: {}\n", shape.attention.positions);
    let head = if shape.tied_head { "the head is the embedding" } else { "the head is a matrix of its own" };
    let parameters = shape.parameters();
    text += &format!("parameters: {parameters} ({:.1} M), {head}\n", parameters as f64 / 1e6);

    let mut types = BTreeMap::new();
    checkpoint.tensors().for_each(|tensor| *types.entry(tensor.dtype).or_insert(0) += 1);
    let types: Vec<String> = types.iter().map(|(dtype, count)| format!("{dtype} ({count} tensors)")).collect();
    let format = match checkpoint.format() {
        Format::Safetensors => "safetensors",
        Format::TorchZip => "torch.save, zip",
        Format::TorchLegacy => "torch.save before 1.6",
        Format::Gguf => "GGUF",
    };
    let layout = match checkpoint.layout() {
        Layout::Conv1d => "matrices as Conv1D has them, [in, out]",
        Layout::Linear => "matrices as nn.Linear has them, [out, in]",
    };
    text += &format!("checkpoint: {format}; {}; {layout}\n", types.join(", "));
    for file in checkpoint.files() {
        let bytes = fs::metadata(file).map_or(0, |metadata| metadata.len());
        text += &format!("  {}, {}\n", file.file_name().unwrap_or_default().display(), ByteSize(bytes));
    }
    text
}

fn of_text(model: &ModelText, rows: usize) -> String {
    let tokenizer = &model.tokenizer;
    let tokens = tokenizer.vocab_size() - tokenizer.unused_ids().len();
    let mut text = format!("tokenizer: {tokens} tokens");
    let unused = rows - tokens;
    if unused > 0 {
        text += &format!(", {unused} rows of the vocabulary are padding");
    }
    text += &match tokenizer.eos() {
        Some((token, id)) => format!(", a text ends with {token} ({id})\n"),
        None => ", no token ends a text\n".into(),
    };
    match model.chat.template() {
        Some(template) => {
            text += "chat template:\n";
            text.extend(template.lines().map(|line| format!("  {line}\n")));
        }
        None => text += "chat template: none; chats become a transcript of `User:` and `Assistant:`\n",
    }
    text
}

/// Tensors that all layers have alike take one line.
fn tensors(checkpoint: &Checkpoint) -> String {
    let each_layer = format!("{}*.", checkpoint.names().layers);
    let mut kinds: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let name = match checkpoint.names().in_layer(tensor.name) {
            Some((_, part)) => format!("{each_layer}{part}"),
            None => tensor.name.to_owned(),
        };
        let kind = (shown(&name), tensor.dtype.to_string(), format!("{:?}", tensor.shape));
        *kinds.entry(kind).or_insert(0) += 1;
    }
    let mut text = String::from("tensors:\n");
    let width = kinds.keys().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for ((name, dtype, shape), count) in &kinds {
        let times = if name.starts_with(&each_layer) { format!("  × {count}") } else { String::new() };
        text += &format!("  {name:width$}  {dtype:<4}  {shape}{times}\n");
    }
    text
}
