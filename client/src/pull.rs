//! `nanoinfer pull`: a model of the hub into the cache that all Hugging Face tools share.
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to those, and so do
//! `HTTPS_PROXY` and `NO_PROXY`. A download that broke off goes on where it did; what the cache has only in part, or of
//! another size, is completed. Progress goes to standard error, the folder to standard output.

use clap::Args;
use nanoinfer_launch::{
    environment,
    model::{self, Version},
    output,
};

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct PullOptions {
    /// Hub id or short name, like gpt2 or org/name.
    #[arg(value_name = "MODEL")]
    model: String,
    /// Branch, tag or commit.
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Which checkpoint of nanochat, by its step [default: the last].
    #[arg(long, value_name = "STEP")]
    step: Option<u64>,
}

pub(crate) fn run(options: &PullOptions) -> Result<(), Failure> {
    let version = Version { revision: options.revision.as_deref(), step: options.step };
    let pulled = model::pull(&options.model, version, &environment::caches());
    output::write(format_args!("{}\n", pulled.map_err(Failure::usage)?.folder.display()))?;
    Ok(())
}
