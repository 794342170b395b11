//! Why a checkpoint cannot be used.

use std::path::PathBuf;

use nanoinfer_shared::model::unserved::NotServed;

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
        "{path} is not a complete checkpoint in safetensors, of torch.save, or in GGUF: {reason}\n  hint: the download may have been interrupted; fetch the file again"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        reason: String,
    },
    /// A GGUF with something that is not served.
    #[error("{}: {reason}", .path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// A tokenizer that cannot be used.
    #[error("{}: {reason}\n  hint: a tokenizer.pkl is what nanochat's scripts.tok_train writes", .path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// A part of a split GGUF is not there.
    #[error("{} is missing, of which {} is another part\n  hint: fetch all parts into one folder", .file.display(), .of.display())]
    MissingPart {
        /// What is missing.
        file: PathBuf,
        /// What is there.
        of: PathBuf,
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
    #[error(
        "the checkpoint has tensor `{name}` twice, in {} and in {}\n  hint: an index (model.safetensors.index.json) beside the files says which is meant; else remove one of them", .first.display(), .second.display()
    )]
    Twice {
        /// The tensor, without prefixes.
        name: String,
        /// A file that has it.
        first: PathBuf,
        /// Another, or the same, which then has it under two prefixes.
        second: PathBuf,
    },
    /// The list of a checkpoint's files is broken.
    #[error("{}: {reason}", .path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// A tensor is not where the index says.
    #[error(
        "{} has no tensor `{name}`, but {} says so\n  hint: files and index are of different checkpoints, or the file is an older one; fetch all of them again", .file.display(), .index.display()
    )]
    NotInFile {
        /// The tensor, without prefixes.
        name: String,
        /// Where it should be.
        file: PathBuf,
        /// The index.
        index: PathBuf,
    },
    /// A weight is NaN or infinite.
    #[error(
        "tensor `{name}` holds {value} (element {element}), with which no answer can be computed\n  hint: the training diverged, or the file is damaged; take an earlier checkpoint, or fetch the file again"
    )]
    NoNumber {
        /// The tensor.
        name: String,
        /// Which: an index, or `[row, column]` of a matrix `[in, out]`.
        element: String,
        /// What it is.
        value: f32,
    },
    /// A weight is too large for the type that was asked for.
    #[error(
        "tensor `{name}` holds {value:e} (element {element}), which is beyond {target}\n  hint: --dtype f32 has room for it; but a weight this large mostly means that the file is damaged"
    )]
    Overflow {
        /// The tensor.
        name: String,
        /// Which: an index, or `[row, column]` of a matrix `[in, out]`.
        element: String,
        /// In the file.
        value: f32,
        /// What it was to become.
        target: &'static str,
    },
    /// Somebody wrote to a file while it was read.
    #[error(
        "{} was changed while it was read, so that its weights may be of two checkpoints\n  hint: start again when it is complete; a trainer should write another file and rename it", .0.display()
    )]
    Changed(PathBuf),
    /// The weights of another architecture.
    #[error(transparent)]
    NotServed(#[from] NotServed),
    /// A tensor that GPT-2 needs is not there.
    #[error("the checkpoint has no tensor `{0}`\n  hint: config.json may belong to another checkpoint")]
    Missing(String),
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
    #[error("tensor `{name}` is of type {dtype}; f32, f16, bf16 and GGUF's blocks are read")]
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
    /// Another family's tensors than the configuration is of.
    #[error("config.json describes a `{described}` model, and the tensors are those of a `{tensors}` model")]
    OtherFamily {
        /// What the configuration is of.
        described: &'static str,
        /// What the tensors are of.
        tensors: &'static str,
    },
    /// A tensor of a layer that its family does not have: leaving it out would change the answers.
    #[error("tensor `{0}` has no place in such a model")]
    Foreign(String),
    /// The sizes of a checkpoint of nanochat cannot be read.
    #[error(
        "cannot read {}, which has the sizes of the checkpoint beside it: {source}\n  hint: nanochat writes model_NNNNNN.pt and meta_NNNNNN.json; copy both", .path.display()
    )]
    Meta {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
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
