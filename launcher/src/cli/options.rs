//! What was typed: on the command line, in `NANOINFER_*`, or in a TOML file, whose keys are the same words.
//!
//! Everything is optional here; `config` decides what the absence of an option means.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum, builder::Resettable};

use super::environment;
use crate::{device::DeviceChoice, size::ByteSize};

/// Serves a GPT-2 model over HTTP, split over one or more ranks.
#[derive(Debug, Parser)]
#[command(
    name = "nanoinfer-launch",
    version = concat!(env!("CARGO_PKG_VERSION"), " (build ", env!("NANOINFER_BUILD_ID"), ")"),
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
                    nanoinfer-launch                                    the built-in demo model, on http://127.0.0.1:8000\n  \
                    nanoinfer-launch --model gpt2-xl --nproc 2          25 heads as 13 + 12, downloaded once\n  \
                    nanoinfer-launch --model ./my-gpt2 --dtype bf16     a folder, in half the memory\n  \
                    nanoinfer-launch --model gpt2-xl --nproc 3 --plan   who would hold what; loads nothing\n  \
                    nanoinfer-launch --device cuda:0,1 --nproc 2        a rank on each of two GPUs\n  \
                    nanoinfer-launch gpu-check                          whether GPUs compute what the CPU does\n  \
                    nanoinfer-launch --host 0.0.0.0 --api-key-file key  for other machines, with a key\n\n\
                  Every option can also be set as NANOINFER_<OPTION> in the environment, or as a key of the --config file.\n\
                  Flags win over the environment, the environment over the file.\n\
                  Exit codes: 0 clean stop, 2 bad usage or model, 1 everything else."
)]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) command: Option<Subcommand>,
    #[command(flatten)]
    pub(super) serve: ServeOptions,
}

impl CommandLine {
    /// What arguments (the first is the program's name) and the environment say together, without variables that are no
    /// options although they have the name of one.
    pub(super) fn parse_from_all(args: impl IntoIterator<Item: Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let ours = |arg: clap::Arg| match arg.get_env() {
            Some(name) if environment::is_service_link(name) => arg.env(Resettable::Reset),
            _ => arg,
        };
        let mut command = Self::command().mut_args(ours).mut_subcommands(|subcommand| subcommand.mut_args(ours));
        let matches = command.try_get_matches_from_mut(args)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Subcommand {
    /// Run one rank, started by hand, by Slurm, mpirun or Kubernetes, that joins a coordinator by address.
    Worker(WorkerOptions),
    /// Run the coordinator alone, waiting for --nproc ranks that join by address.
    Coordinator(Box<CoordinatorOptions>),
    /// Compare what GPUs compute with the CPU, and measure what they cost.
    GpuCheck(GpuCheckOptions),
}

#[derive(Debug, Default, Args)]
pub(super) struct ServeOptions {
    /// TOML file with any of these options, without the dashes.
    #[arg(long, env = "NANOINFER_CONFIG", value_name = "FILE", help_heading = "Configuration")]
    pub(super) config: Option<PathBuf>,
    /// Folder, checkpoint file, hub id (org/name) or short name (gpt2 … gpt2-xl) [default: the built-in nano-chat].
    #[arg(long, env = "NANOINFER_MODEL", value_name = "MODEL", help_heading = "Model")]
    pub(super) model: Option<String>,
    /// Branch, tag or commit of a hub model [default: main].
    #[arg(long, env = "NANOINFER_REVISION", value_name = "REVISION", help_heading = "Model")]
    pub(super) revision: Option<String>,
    /// The name that clients see [default: what --model says, of a path the last component].
    #[arg(long, env = "NANOINFER_SERVED_MODEL_NAME", value_name = "NAME", help_heading = "Model")]
    pub(super) served_model_name: Option<String>,
    /// Ranks to split the model over, up to its number of attention heads [default: 1].
    #[arg(long, env = "NANOINFER_NPROC", value_name = "N", value_parser = positive, help_heading = "Cluster")]
    pub(super) nproc: Option<u32>,
    /// What to compute on: auto (GPUs, else the CPU, saying why), cpu, cuda, or GPUs by number like cuda:0,1
    /// [default: auto].
    #[arg(long, env = "NANOINFER_DEVICE", value_name = "DEVICE", help_heading = "Cluster")]
    pub(super) device: Option<DeviceChoice>,
    /// Element type of weights and matrix products [default: auto].
    #[arg(long, env = "NANOINFER_DTYPE", value_enum, help_heading = "Cluster")]
    pub(super) dtype: Option<TypedDType>,
    /// Element type of the KV cache [default: auto].
    #[arg(long, env = "NANOINFER_KV_DTYPE", value_enum, help_heading = "Cluster")]
    pub(super) kv_dtype: Option<TypedKvDType>,
    /// Address to listen on [default: 127.0.0.1].
    #[arg(long, env = "NANOINFER_HOST", value_name = "HOST", help_heading = "Server")]
    pub(super) host: Option<String>,
    /// Port to listen on; 0 takes any free one [default: 8000].
    #[arg(long, env = "NANOINFER_PORT", value_name = "PORT", help_heading = "Server")]
    pub(super) port: Option<u16>,
    /// Key that requests must show as `Authorization: Bearer KEY`; other users of this host can see it here, unlike
    /// in a file.
    #[arg(
        long,
        env = "NANOINFER_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        conflicts_with = "api_key_file",
        help_heading = "Server"
    )]
    pub(super) api_key: Option<String>,
    /// File whose first line is that key.
    #[arg(long, env = "NANOINFER_API_KEY_FILE", value_name = "FILE", help_heading = "Server")]
    pub(super) api_key_file: Option<PathBuf>,
    /// Sites whose pages may use this server, like https://chat.example, separated by commas; * for all
    /// [default: none].
    #[arg(long, env = "NANOINFER_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', help_heading = "Server")]
    pub(super) cors_origin: Option<Vec<String>>,
    /// Names of this server besides localhost, like chat.example, separated by commas; * for all. Looked at without a key on
    /// a loopback address, where a name that is not known may be another site's [default: none].
    #[arg(long, env = "NANOINFER_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',', help_heading = "Server")]
    pub(super) allowed_host: Option<Vec<String>>,
    /// Compute threads of each rank [default: cores divided by ranks].
    #[arg(long, env = "NANOINFER_THREADS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Cluster")]
    pub(super) threads: Option<u32>,
    /// Instruction set of the kernels [default: the best there is].
    #[arg(long, env = "NANOINFER_ISA", value_name = "LEVEL", value_parser = ["portable", "avx2", "avx-vnni", "avx512", "avx512-bf16"], help_heading = "Cluster")]
    pub(super) isa: Option<String>,
    /// How ranks exchange partial sums [default: auto].
    #[arg(long, env = "NANOINFER_COMM", value_enum, help_heading = "Cluster")]
    pub(super) comm: Option<TypedComm>,
    /// KV cache of each rank, like 512MiB or 2G [default: a quarter of the free memory, or what --max-seqs need].
    #[arg(long, env = "NANOINFER_KV_MEMORY", value_name = "SIZE", help_heading = "Limits")]
    pub(super) kv_memory: Option<ByteSize>,
    /// Most sequences in one step [default: 32].
    #[arg(long, env = "NANOINFER_MAX_SEQS", value_name = "N", value_parser = positive, help_heading = "Limits")]
    pub(super) max_seqs: Option<u32>,
    /// Most new tokens in one step [default: 512].
    #[arg(long, env = "NANOINFER_MAX_BATCHED_TOKENS", value_name = "N", value_parser = positive, help_heading = "Limits")]
    pub(super) max_batched_tokens: Option<u32>,
    /// Most requests waiting for their first step; beyond it 429 [default: 256].
    #[arg(long, env = "NANOINFER_MAX_QUEUE", value_name = "N", value_parser = positive, help_heading = "Limits")]
    pub(super) max_queue: Option<u32>,
    /// Most tokens of prompts waiting for their first step, or one larger request; beyond it 429 [default: 65536].
    #[arg(long, env = "NANOINFER_MAX_QUEUE_TOKENS", value_name = "N", value_parser = positive, help_heading = "Limits")]
    pub(super) max_queue_tokens: Option<u32>,
    /// Memory that the answer to one request may take, like 64MiB; beyond it 400 [default: 256MiB].
    #[arg(long, env = "NANOINFER_MAX_REQUEST_MEMORY", value_name = "SIZE", help_heading = "Limits")]
    pub(super) max_request_memory: Option<ByteSize>,
    /// Compute every prompt from its start, instead of beginning with KV blocks computed for another.
    #[arg(long, env = "NANOINFER_NO_PREFIX_CACHE", help_heading = "Limits")]
    pub(super) no_prefix_cache: bool,
    /// How long running requests may take to finish after SIGTERM, like 30 or 2m [default: 30].
    #[arg(long, env = "NANOINFER_SHUTDOWN_TIMEOUT", value_name = "SECONDS", value_parser = duration, help_heading = "Server")]
    pub(super) shutdown_timeout: Option<Duration>,
    /// Print what every rank will hold, then stop without loading anything.
    #[arg(long, env = "NANOINFER_PLAN", help_heading = "Cluster")]
    pub(super) plan: bool,
    /// Write a timeline of every rank's steps to this file, for ui.perfetto.dev.
    #[arg(long, env = "NANOINFER_TRACE", value_name = "FILE", help_heading = "Configuration")]
    pub(super) trace: Option<PathBuf>,
    /// What to log to standard error: error, warn, info, debug, trace, or a filter like RUST_LOG's [default: info].
    #[arg(long, env = "NANOINFER_LOG", value_name = "FILTER", help_heading = "Configuration")]
    pub(super) log: Option<String>,
    /// End with this process, which started us.
    #[arg(long, hide = true, value_name = "PID")]
    pub(super) parent: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct CoordinatorOptions {
    /// Address at which ranks join, HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: String,
    /// File with the secret that all processes of the cluster hold.
    #[arg(long, value_name = "FILE")]
    pub(super) secret_file: PathBuf,
    #[command(flatten)]
    pub(super) serve: ServeOptions,
}

#[derive(Debug, Args)]
pub(super) struct WorkerOptions {
    /// Which rank this is, from 0.
    #[arg(long, value_name = "R")]
    pub(super) rank: usize,
    /// How many ranks there are.
    #[arg(long, value_name = "N")]
    pub(super) world: usize,
    /// Where the coordinator listens for ranks, HOST:PORT.
    #[arg(long, value_name = "ADDR")]
    pub(super) connect: Option<String>,
    /// File with the secret that all processes of the cluster hold.
    #[arg(long, value_name = "FILE")]
    pub(super) secret_file: Option<PathBuf>,
    /// This host's copy of the model [default: the coordinator's paths].
    #[arg(long, value_name = "MODEL")]
    pub(super) model: Option<String>,
    /// Branch, tag or commit of a hub model [default: main].
    #[arg(long, value_name = "REVISION")]
    pub(super) revision: Option<String>,
    /// Address of this host that the other ranks can reach [default: the one that reaches the coordinator].
    #[arg(long, value_name = "HOST")]
    pub(super) data_host: Option<String>,
    /// What to log to standard error [default: info].
    #[arg(long, env = "NANOINFER_LOG", value_name = "FILTER")]
    pub(super) log: Option<String>,
    /// The control link is standard input.
    #[arg(long, hide = true, requires = "parent", conflicts_with = "connect")]
    pub(super) inherited: bool,
    /// The process that must still be our parent.
    #[arg(long, hide = true, value_name = "PID")]
    pub(super) parent: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct GpuCheckOptions {
    /// Which GPUs, by number, separated by commas [default: all].
    #[arg(long, value_name = "GPUS", value_delimiter = ',')]
    pub(super) gpu: Vec<u32>,
}

/// Values of `--dtype`, with the names that other programs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TypedDType {
    /// bf16 on GPUs and where the CPU multiplies it (AVX-512 BF16), else f32.
    Auto,
    /// 32-bit floats.
    #[value(alias = "fp32", alias = "float32")]
    F32,
    /// Weights and the inputs of products in bf16, sums in f32: half the memory.
    #[value(alias = "bfloat16")]
    Bf16,
    /// Weights and the inputs of products in bytes with scales: a quarter of the memory. On CPUs.
    Int8,
    /// As bf16, in IEEE half precision. On GPUs.
    #[value(alias = "fp16", alias = "float16")]
    F16,
}

/// Values of `--kv-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TypedKvDType {
    /// That of the weights; on GPUs there is no other.
    Auto,
    /// 32-bit floats.
    #[value(alias = "fp32", alias = "float32")]
    F32,
    /// Half the memory, rounded.
    #[value(alias = "bfloat16")]
    Bf16,
    /// Bytes with scales: about a quarter of the memory. On CPUs.
    Int8,
}

/// Values of `--comm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TypedComm {
    /// NCCL between GPUs, shared memory within this host otherwise, TCP between hosts.
    Auto,
    /// Shared memory.
    Shm,
    /// TCP.
    Tcp,
    /// From GPU to GPU, one for each rank.
    Nccl,
}

fn positive(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number, 1 or more".into())
}

/// Seconds, or a number with `ms`, `s`, `m` or `h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().map_err(|_| "expected seconds, like 30, or 500ms, 2m".to_string())?;
    match unit.trim() {
        "ms" => Ok(Duration::from_millis(number.into())),
        "" | "s" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_secs(number.into()) * 60),
        "h" => Ok(Duration::from_secs(number.into()) * 3600),
        other => Err(format!("`{other}` is no unit of time; use ms, s, m or h")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::build::BUILD_ID;

    #[test]
    fn the_command_line_is_well_formed_and_shows_the_build() {
        CommandLine::command().debug_assert();
        let version = CommandLine::command().render_version().to_string();
        assert!(version.starts_with("nanoinfer-launch ") && version.contains(BUILD_ID), "{version}");
    }

    #[test]
    fn durations_are_seconds_unless_they_say_otherwise() {
        let read = |text| duration(text).ok().map(|duration| duration.as_millis());
        assert_eq!(["30", "500ms", "2m", "1h"].map(read), [Some(30_000), Some(500), Some(120_000), Some(3_600_000)]);
        assert_eq!(["", "x", "-1", "3 days"].map(read), [None; 4]);
    }

    #[test]
    fn slips_in_flags_and_values_are_named() {
        let say = |args: &[&str]| CommandLine::try_parse_from(args).unwrap_err().to_string();
        assert!(say(&["x", "--nprocs", "2"]).contains("--nproc"));
        assert!(say(&["x", "--comm", "shn"]).contains("shm"));
        assert!(say(&["x", "--nproc", "0"]).contains("'0' for '--nproc <N>': expected a whole number, 1 or more"));
        assert!(say(&["x", "--isa", "avx51"]).contains("avx512-bf16"));
        assert!(say(&["x", "worker", "--rank", "0"]).contains("--world"));
    }
}
