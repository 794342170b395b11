//! `nanoinfer inspect`: what a model holds, and how it would be split.
//!
//! Reads headers only. Text for people; nothing is loaded or started.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::Context;
use clap::Args;
use nanoinfer_checkpoint::{Checkpoint, Format, Layout, shown};
use nanoinfer_launch::{
    ClusterConfig, environment,
    model::{self, ResolvedModel, has_tokenizer},
    output,
    plan::{Placement, Plan},
    size::ByteSize,
    text::ModelText,
};

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct InspectOptions {
    /// Folder, checkpoint file, hub id or short name [default: the built-in nano-chat].
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// Branch, tag or commit of a hub model.
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Show who would hold what with this many ranks.
    #[arg(long, value_name = "N")]
    nproc: Option<usize>,
}

pub(crate) fn run(options: &InspectOptions) -> Result<(), Failure> {
    let (name, revision) = (options.model.as_deref(), options.revision.as_deref());
    let caches = environment::caches();
    let model = model::resolve_checkpoint(name, revision, &caches).map_err(Failure::usage)?;
    let checkpoint = Checkpoint::open(&model.weights).map_err(Failure::usage)?;
    let mut text = String::new();
    describe(&model, &checkpoint, &mut text).context("cannot format")?;
    if has_tokenizer(&model.folder) {
        let of_text = ModelText::load(&model.folder, &model.shape).map_err(Failure::usage)?;
        describe_text(&of_text, &mut text).context("cannot format")?;
    } else {
        text += "tokenizer: none beside it, so that it cannot be served yet\n";
    }
    list_tensors(&checkpoint, &mut text).context("cannot format")?;
    if let Some(nproc) = options.nproc {
        let config = ClusterConfig {
            model: options.model.clone(),
            revision: options.revision.clone(),
            nproc,
            ..ClusterConfig::new(caches)
        };
        let plan = Plan::new(&config, Placement::Here).map_err(Failure::usage)?;
        write!(text, "\n{plan}\n").context("cannot format")?;
    }
    output::write(text)?;
    Ok(())
}

fn describe(model: &ResolvedModel, checkpoint: &Checkpoint, text: &mut String) -> std::fmt::Result {
    let shape = &model.shape;
    let folder = model.folder.display().to_string();
    // A path that was typed says where it is.
    let place = if model.name == folder { String::new() } else { format!(" in {folder}") };
    writeln!(text, "{}{place}", model.name)?;
    writeln!(
        text,
        "geometry: {} layers, width {}, {} heads of {}, MLP of {} with {}, vocabulary of {}, {} positions",
        shape.layers,
        shape.width,
        shape.attention.heads,
        shape.attention.head_dim,
        shape.mlp.inner,
        shape.mlp.activation.name(),
        shape.vocab_size,
        shape.context
    )?;
    if shape.attention.scaled_by_layer {
        writeln!(text, "attention: scores of layer l are divided by l + 1 as well")?;
    }
    let head = if shape.tied_head { "the head is the embedding" } else { "the head is a matrix of its own" };
    let parameters = shape.parameters();
    writeln!(text, "parameters: {parameters} ({:.1} M), {head}", parameters as f64 / 1e6)?;

    let mut types = BTreeMap::new();
    checkpoint.tensors().for_each(|tensor| *types.entry(tensor.dtype).or_insert(0) += 1);
    let types: Vec<String> = types.iter().map(|(dtype, count)| format!("{dtype} ({count} tensors)")).collect();
    let format = match checkpoint.format() {
        Format::Safetensors => "safetensors",
        Format::TorchZip => "torch.save, zip",
        Format::TorchLegacy => "torch.save before 1.6",
    };
    let layout = match checkpoint.layout() {
        Layout::Conv1d => "matrices as Conv1D has them, [in, out]",
        Layout::Linear => "matrices as nn.Linear has them, [out, in]",
    };
    writeln!(text, "checkpoint: {format}; {}; {layout}", types.join(", "))?;
    for file in checkpoint.files() {
        let bytes = fs::metadata(file).map_or(0, |metadata| metadata.len());
        writeln!(text, "  {}, {}", file.file_name().unwrap_or(Path::new("").as_os_str()).display(), ByteSize(bytes))?;
    }
    Ok(())
}

fn describe_text(model: &ModelText, text: &mut String) -> std::fmt::Result {
    let tokenizer = &model.tokenizer;
    let unused = tokenizer.unused_ids().len();
    write!(text, "tokenizer: {} tokens", tokenizer.vocab_size() - unused)?;
    if unused > 0 {
        write!(text, ", {unused} rows of the vocabulary are padding")?;
    }
    match tokenizer.eos() {
        Some((token, id)) => writeln!(text, ", a text ends with {token} ({id})")?,
        None => writeln!(text, ", no token ends a text")?,
    }
    match model.chat.template() {
        Some(template) => {
            writeln!(text, "chat template:")?;
            template.lines().try_for_each(|line| writeln!(text, "  {line}"))
        }
        None => writeln!(text, "chat template: none; chats become a transcript of `User:` and `Assistant:`"),
    }
}

/// Tensors that all layers have alike take one line.
fn list_tensors(checkpoint: &Checkpoint, text: &mut String) -> std::fmt::Result {
    let each_layer = format!("{}*.", checkpoint.family().names.layers);
    let mut kinds: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let name = match checkpoint.family().in_layer(tensor.name) {
            Some((_, part)) => format!("{each_layer}{part}"),
            None => tensor.name.to_owned(),
        };
        let kind = (shown(&name), tensor.dtype.to_string(), format!("{:?}", tensor.shape));
        *kinds.entry(kind).or_insert(0) += 1;
    }
    writeln!(text, "tensors:")?;
    let width = kinds.keys().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for ((name, dtype, shape), count) in &kinds {
        let times = if name.starts_with(&each_layer) { format!("  × {count}") } else { String::new() };
        writeln!(text, "  {name:width$}  {dtype:<4}  {shape}{times}")?;
    }
    Ok(())
}
