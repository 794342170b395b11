//! Why a checkpoint cannot be used.

use std::path::PathBuf;

use super::pickle::PickleError;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be opened.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is of no known format, or is cut short.
    #[error(
        "{path} is not a complete checkpoint in safetensors or of torch.save: {reason}\n  hint: the download may have been interrupted; fetch the file again"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        reason: String,
    },
    /// A file of another kind, known by how it begins.
    #[error("{path} is {what}\n  hint: {hint}")]
    OtherFile {
        /// The file.
        path: PathBuf,
        /// Its kind.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The pickle inside of a torch file holds more than data, or is broken.
    #[error("{path}: {source}")]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is in it.
        source: PickleError,
    },
    /// Two tensors of one name.
    #[error("the checkpoint has tensor `{name}` twice")]
    Twice {
        /// The tensor, without prefixes.
        name: String,
    },
    /// The weights of another architecture.
    #[error("the checkpoint is a {family} model (tensor `{tensor}`), not GPT-2: {why}")]
    NotGpt2 {
        /// The architecture.
        family: &'static str,
        /// By which it is known.
        tensor: String,
        /// What sets it apart.
        why: &'static str,
    },
    /// A tensor that GPT-2 needs is not there.
    #[error("the checkpoint has no tensor `{name}`\n  hint: config.json may belong to another checkpoint")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` is {got:?}, but the configuration makes it {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// By the configuration.
        expected: Vec<usize>,
        /// In the file.
        got: Vec<usize>,
    },
    /// An element type that GPT-2 checkpoints don't have.
    #[error("tensor `{name}` is of type {dtype}; f32, f16 and bf16 are read")]
    Type {
        /// The tensor.
        name: String,
        /// In the file.
        dtype: String,
    },
    /// More layers than configured.
    #[error("the checkpoint has tensor `{name}`, but the configuration says n_layer {n_layer}")]
    Extra {
        /// The tensor.
        name: String,
        /// By the configuration.
        n_layer: usize,
    },
    /// A tensor of a layer that GPT-2 does not have: leaving it out would change the answers.
    #[error("tensor `{name}` has no place in a layer of GPT-2")]
    Foreign {
        /// The tensor.
        name: String,
    },
    /// A checkpoint cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}
