//! Which model, and how to run it: for verbs that start their own.

use anyhow::anyhow;
use clap::Args;
use nanoinfer_launch::{
    ClusterConfig,
    cli::cluster_config,
    environment,
    model::{self, ResolvedModel, Version},
};

use crate::failure::Failure;

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ModelOptions {
    /// Model: folder, checkpoint file, hub id or short name [default: the built-in nano-chat].
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// Branch, tag or commit of a hub model.
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// Which checkpoint of a folder of nanochat, by its step [default: the last].
    #[arg(long, value_name = "STEP")]
    step: Option<u64>,
    /// Ranks to split the model over [default: 1].
    #[arg(long, value_name = "N")]
    nproc: Option<String>,
    /// What to compute on: auto, cpu, cuda, or GPUs by number like cuda:0,1 [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Element type of weights and matrix products: auto, f32, bf16, int8 or f16 [default: auto].
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,
    /// Compute threads of each rank [default: cores divided by ranks].
    #[arg(long, value_name = "N")]
    threads: Option<String>,
}

impl ModelOptions {
    /// The same on so many ranks.
    pub(crate) fn with_nproc(&self, nproc: u32) -> Self {
        Self { nproc: Some(nproc.to_string()), ..self.clone() }
    }

    /// The same on the processor, unless a device was named.
    pub(crate) fn or_on_cpu(&self) -> Self {
        Self { device: self.device.clone().or(Some("cpu".into())), ..self.clone() }
    }

    /// The same in f32, unless a type was named.
    pub(crate) fn or_in_f32(&self) -> Self {
        Self { dtype: self.dtype.clone().or(Some("f32".into())), ..self.clone() }
    }

    /// As a cluster of this process.
    ///
    /// # Errors
    /// When an option is none of what it can be.
    pub(crate) fn config(&self) -> Result<ClusterConfig, Failure> {
        cluster_config(self.flags()).map_err(|reason| Failure::usage(anyhow!(reason)))
    }

    /// Finds the model, and downloads it where it is not here yet.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn resolve(&self) -> Result<ResolvedModel, Failure> {
        let version = Version { revision: self.revision.as_deref(), step: self.step };
        model::resolve(self.model.as_deref(), version, &environment::caches()).map_err(Failure::usage)
    }

    /// As flags of `nanoinfer-launch`, which knows what they mean.
    pub(crate) fn flags(&self) -> Vec<String> {
        let step = self.step.map(|step| step.to_string());
        let given = [
            ("--model", &self.model),
            ("--revision", &self.revision),
            ("--step", &step),
            ("--nproc", &self.nproc),
            ("--device", &self.device),
            ("--dtype", &self.dtype),
            ("--threads", &self.threads),
        ];
        given.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value.clone()?])).flatten().collect()
    }
}
