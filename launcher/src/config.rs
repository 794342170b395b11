//! What a cluster is asked to be, and how each wish is typed: one definition for the library, the command line, the environment
//! and a file.
//!
//! Knows defaults; does not know what is possible: [`Plan`](crate::plan::Plan) decides that.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{
    Args, Command, FromArgMatches, ValueEnum,
    builder::{
        BoolValueParser, NonEmptyStringValueParser, PathBufValueParser, PossibleValue, PossibleValuesParser,
        RangedI64ValueParser, Resettable, TypedValueParser,
    },
};
use nanoinfer_coordinator::engine::RestartLimit;
use nanoinfer_shared::{comm::CommDType, protocol::DType};

use crate::{
    environment,
    log::Log,
    model::{Caches, Version},
    size::ByteSize,
    spawn::WorkerBinary,
};

/// What to serve, and on what. Start from [`ClusterConfig::default`].
#[derive(Args, Clone, Debug)]
pub struct ClusterConfig {
    /// Folder, checkpoint file, hub id (org/name) or short name (gpt2 … gpt2-xl) [default: the built-in nano-chat].
    #[arg(long, short, env = "NANOINFER_MODEL", value_name = "MODEL", help_heading = "Model")]
    pub model: Option<String>,
    /// Branch, tag or commit of a hub model [default: main].
    #[arg(long, env = "NANOINFER_REVISION", value_name = "REVISION", help_heading = "Model")]
    pub revision: Option<String>,
    /// Which checkpoint of a folder of nanochat, by its step: model_000650.pt is of 650 [default: the last].
    #[arg(long, env = "NANOINFER_STEP", value_name = "STEP", help_heading = "Model")]
    pub step: Option<u64>,
    /// The name that clients see [default: what --model says, of a path the last component].
    #[arg(
        long = "served-model-name",
        env = "NANOINFER_SERVED_MODEL_NAME",
        value_name = "NAME",
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = "Model"
    )]
    pub served_name: Option<String>,
    /// Ranks to split the model over, up to its number of attention heads [default: 1].
    #[arg(long, env = "NANOINFER_NPROC", value_name = "N", value_parser = positive, default_value_t = 1, help_heading = "Cluster")]
    pub nproc: usize,
    /// What to compute on: auto (GPUs, else the CPU, saying why), cpu, cuda, or GPUs by number like cuda:0,1
    /// [default: auto].
    #[arg(long, env = "NANOINFER_DEVICE", value_name = "DEVICE", default_value = "auto", help_heading = "Cluster")]
    pub device: DeviceChoice,
    /// Element type of weights and matrix products [default: auto].
    #[arg(long, env = "NANOINFER_DTYPE", value_parser = dtype(), default_value = "auto", help_heading = "Cluster")]
    pub dtype: DTypeChoice,
    /// Element type of the KV cache [default: auto].
    #[arg(long, env = "NANOINFER_KV_DTYPE", value_parser = kv_dtype(), default_value = "auto", help_heading = "Cluster")]
    pub kv_dtype: DTypeChoice,
    /// Compute threads of each rank [default: cores divided by ranks].
    #[arg(long, env = "NANOINFER_THREADS", value_name = "N", value_parser = RangedI64ValueParser::<usize>::new().range(1..=1024), help_heading = "Cluster")]
    pub threads: Option<usize>,
    /// Instruction set of the kernels [default: the best there is].
    #[arg(long, env = "NANOINFER_ISA", value_name = "LEVEL", value_parser = ["portable", "avx2", "avx-vnni", "avx512", "avx512-bf16", "amx"], help_heading = "Cluster")]
    pub isa: Option<String>,
    /// What to do when a rank is lost: start it again, so that every request goes on, or end [default: restart].
    #[arg(long, env = "NANOINFER_ON_RANK_LOSS", value_enum, default_value = "restart", help_heading = "Cluster")]
    pub on_rank_loss: OnRankLoss,
    /// How many losses of ranks are borne within how long; beyond it the server ends [default: 3/10m].
    #[arg(long, env = "NANOINFER_RANK_RESTARTS", value_name = "N/DURATION", value_parser = restarts, default_value = "3/10m", help_heading = "Cluster")]
    pub rank_restarts: RestartLimit,
    /// How ranks exchange partial sums [default: auto].
    #[arg(long, env = "NANOINFER_COMM", value_enum, default_value = "auto", help_heading = "Cluster")]
    pub comm: CommChoice,
    /// Shares of hosts: even, or auto: in proportion to how fast each was measured to read memory. The same on all nodes [default: even].
    #[arg(long, env = "NANOINFER_BALANCE", value_enum, default_value = "even", help_heading = "Cluster")]
    pub balance: Balance,
    /// What ranks round partial sums to before they exchange them [default: f32].
    #[arg(long, env = "NANOINFER_COMM_DTYPE", value_parser = comm_dtype(), default_value = "f32", help_heading = "Cluster")]
    pub comm_dtype: CommDType,
    /// Whether what crosses between hosts is encrypted; that others of the cluster hold its secret is proved either way [default: on].
    #[arg(long, env = "NANOINFER_LINK_ENCRYPTION", value_enum, default_value = "on", help_heading = "Cluster")]
    pub link_encryption: Switch,
    /// KV cache of each rank, like 512MiB or 2G [default: a quarter of the free memory, or what --max-seqs need].
    #[arg(long, env = "NANOINFER_KV_MEMORY", value_name = "SIZE", help_heading = "Limits")]
    pub kv_memory: Option<ByteSize>,
    /// Positions that a sequence may use, prompt and answer together [default: all that the model has].
    #[arg(long, env = "NANOINFER_MAX_MODEL_LEN", value_name = "N", value_parser = positive, help_heading = "Limits")]
    pub max_model_len: Option<usize>,
    /// Cap of logits of a nanochat model, where its checkpoint does not tell: 20 from March 3 to 9, 2026, else 15 [default: 15].
    #[arg(long, env = "NANOINFER_LOGIT_SOFTCAP", value_name = "CAP", value_parser = above_zero, help_heading = "Model")]
    pub logit_softcap: Option<f32>,
    /// Most sequences in one step [default: 32].
    #[arg(long, env = "NANOINFER_MAX_SEQS", value_name = "N", value_parser = positive, default_value_t = 32, help_heading = "Limits")]
    pub max_seqs: usize,
    /// Most new tokens in one step [default: 512].
    #[arg(long, env = "NANOINFER_MAX_BATCHED_TOKENS", value_name = "N", value_parser = positive, default_value_t = 512, help_heading = "Limits")]
    pub max_batched_tokens: usize,
    /// Most requests waiting for their first step; beyond it 429 [default: 256].
    #[arg(long, env = "NANOINFER_MAX_QUEUE", value_name = "N", value_parser = positive, default_value_t = 256, help_heading = "Limits")]
    pub max_queue: usize,
    // A minute of prefill at a thousand tokens a second: who waits longer is better told so.
    /// Most tokens of prompts waiting for their first step, or one larger request; beyond it 429 [default: 65536].
    #[arg(long, env = "NANOINFER_MAX_QUEUE_TOKENS", value_name = "N", value_parser = positive, default_value_t = 65_536, help_heading = "Limits")]
    pub max_queue_tokens: usize,
    /// Whether a prompt may begin with KV blocks that were computed for another.
    #[arg(
        long = "no-prefix-cache",
        help = "Compute every prompt from its start, instead of beginning with KV blocks computed for another",
        env = "NANOINFER_NO_PREFIX_CACHE",
        value_parser = BoolValueParser::new().map(|without| !without),
        display_order = 100,
        help_heading = "Limits"
    )]
    pub prefix_cache: bool,
    /// Whether a model that asks for a calculator has one.
    #[arg(
        long = "no-calculator",
        help = "Leave the calculator out that models of nanochat ask for",
        env = "NANOINFER_NO_CALCULATOR",
        value_parser = BoolValueParser::new().map(|without| !without),
        display_order = 101,
        help_heading = "Limits"
    )]
    pub calculator: bool,
    /// Write a timeline of every rank's steps to this file, for ui.perfetto.dev.
    #[arg(long, env = "NANOINFER_TRACE", value_name = "FILE", value_parser = absolute_path(), help_heading = "Configuration")]
    pub trace: Option<PathBuf>,
    /// Most bytes of the timeline: at half of them FILE becomes FILE.1, and a new one begins [default: 256MiB].
    #[arg(
        long,
        env = "NANOINFER_TRACE_LIMIT",
        value_name = "SIZE",
        default_value = "256MiB",
        help_heading = "Configuration"
    )]
    pub trace_limit: ByteSize,
    /// Where models are kept.
    #[arg(skip = Caches::nowhere())]
    pub caches: Caches,
    /// What runs the ranks, where there are several. A program of its own that embeds this library names a
    /// `nanoinfer-launch` of the same build.
    #[arg(skip)]
    pub worker_binary: Option<WorkerBinary>,
    /// What the ranks log, and how.
    #[arg(skip)]
    pub log: Log,
}

/// Element type as asked for; none for what goes with the device, or with the other type.
pub type DTypeChoice = Option<DType>;

/// What becomes of the server when a rank is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnRankLoss {
    /// Another takes the rank's place.
    Restart,
    /// It ends.
    Exit,
}

/// Data link, as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CommChoice {
    /// NCCL between GPUs of one host, shared memory within each host otherwise, TCP between hosts.
    Auto,
    /// Shared memory.
    Shm,
    /// TCP between all ranks, within a host too.
    Tcp,
    /// From GPU to GPU, one for each rank.
    Nccl,
}

/// How the shares of several hosts are dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Balance {
    /// The same to every rank.
    Even,
    /// In proportion to what hosts read, divided by their ranks.
    Auto,
}

/// Something that is or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// What to compute on, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// GPUs where there are any, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// GPUs by their ordinals, or all of them.
    Cuda(Vec<u32>),
}

impl ClusterConfig {
    /// The demo model on one rank, with models kept in `caches`.
    pub fn new(caches: Caches) -> Self {
        // As where nothing is typed, in the environment neither.
        let silent = |arg: clap::Arg| arg.env(Resettable::Reset);
        let command = Self::augment_args(Command::new("")).mut_args(silent);
        let defaults = command.try_get_matches_from([""]).and_then(|nothing| Self::from_arg_matches(&nothing));
        Self { caches, ..defaults.expect("every option has a default") }
    }

    /// Which version of the model.
    pub fn version(&self) -> Version<'_> {
        Version { revision: self.revision.as_deref(), step: self.step }
    }
}

impl Default for ClusterConfig {
    /// As [`ClusterConfig::new`], with the caches where the command line has them.
    fn default() -> Self {
        Self::new(environment::caches())
    }
}

/// Like `3/10m`.
fn restarts(text: &str) -> Result<RestartLimit, String> {
    let (most, within) = text.split_once('/').ok_or("expected a number and a time, like 3/10m")?;
    let most = most.trim().parse().map_err(|_| format!("`{most}` is no number of restarts; write it like 3/10m"))?;
    Ok(RestartLimit { most, within: duration(within.trim())? })
}

/// Seconds, or a number with `ms`, `s`, `m` or `h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
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

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is none of auto, cpu, cuda, cuda:0, cuda:0,1");
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(Vec::new())),
            _ => {
                let list = text.strip_prefix("cuda:").ok_or_else(wrong)?;
                let ordinals: Vec<u32> =
                    list.split(',').map(|ordinal| ordinal.parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
                let repeated = ordinals.iter().enumerate().any(|(i, ordinal)| ordinals[..i].contains(ordinal));
                if repeated { Err(format!("`{text}` names a GPU twice")) } else { Ok(Self::Cuda(ordinals)) }
            }
        }
    }
}

/// Element types by their names, with those that other programs use.
const DTYPES: [(&str, &[&str], DType); 4] = [
    ("f32", &["fp32", "float32"], DType::F32),
    ("bf16", &["bfloat16"], DType::Bf16),
    ("int8", &[], DType::Int8),
    ("f16", &["fp16", "float16"], DType::F16),
];

fn dtype() -> impl TypedValueParser<Value = DTypeChoice> {
    auto_or(&[
        ("auto", "bf16 on GPUs and where the CPU multiplies it (AVX-512 BF16), else f32"),
        ("f32", "32-bit floats"),
        ("bf16", "Weights and the inputs of products in bf16, sums in f32: half the memory"),
        ("int8", "Weights and the inputs of products in bytes with scales: a quarter of the memory"),
        ("f16", "As bf16, in IEEE half precision. On GPUs"),
    ])
}

fn kv_dtype() -> impl TypedValueParser<Value = DTypeChoice> {
    auto_or(&[
        ("auto", "That of the weights; on GPUs there is no other, and beside int8 it is bf16"),
        ("f32", "32-bit floats"),
        ("bf16", "Half the memory, rounded"),
        ("int8", "Bytes with scales: about a quarter of the memory. On CPUs"),
    ])
}

fn comm_dtype() -> impl TypedValueParser<Value = CommDType> {
    let value = |name: &'static str, help: &'static str| PossibleValue::new(name).help(help);
    let values = [value("f32", "As they are"), value("bf16", "Half the bytes between hosts; the same on every link")];
    PossibleValuesParser::new(values).map(|typed| if typed == "bf16" { CommDType::Bf16 } else { CommDType::F32 })
}

/// One of these names, each with its help, and what it stands for.
fn auto_or(choices: &[(&'static str, &'static str)]) -> impl TypedValueParser<Value = DTypeChoice> + use<> {
    let aliases = |name| DTYPES.iter().find(|dtype| dtype.0 == name).map_or(&[][..], |dtype| dtype.1);
    let value = |&(name, help)| PossibleValue::new(name).help(help).aliases(aliases(name));
    PossibleValuesParser::new(choices.iter().map(value)).map(|typed| {
        let known = DTYPES.iter().find(|(name, aliases, _)| *name == typed || aliases.contains(&typed.as_str()));
        known.map(|&(.., dtype)| dtype)
    })
}

/// Ranks open it too, wherever they run.
fn absolute_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| std::path::absolute(&path).unwrap_or(path))
}

fn above_zero(text: &str) -> Result<f32, String> {
    let number: Option<f32> = text.parse().ok().filter(|n: &f32| *n > 0.0 && n.is_finite());
    number.ok_or_else(|| "expected a number above 0".into())
}

pub(crate) fn positive(text: &str) -> Result<usize, String> {
    let number: Option<u32> = text.parse().ok().filter(|&n| n > 0);
    number.map(|n| n as usize).ok_or_else(|| format!("expected a whole number from 1 to {}", u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_spelled_out() {
        let read = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(read("cuda").unwrap(), DeviceChoice::Cuda(Vec::new()));
        assert_eq!(read("cuda:0,3").unwrap(), DeviceChoice::Cuda(vec![0, 3]));
        for wrong in ["gpu", "cuda:", "cuda:x", "cuda:0,", "cuda:1,1", "CPU"] {
            assert!(read(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = ClusterConfig::new(Caches::nowhere());
        assert_eq!((config.nproc, config.max_seqs, config.max_batched_tokens), (1, 32, 512));
        assert_eq!((config.max_queue, config.max_queue_tokens, config.prefix_cache), (256, 65_536, true));
        assert_eq!((config.dtype, config.kv_dtype, config.comm), (None, None, CommChoice::Auto));
        assert_eq!((config.device, config.threads, config.log.filter.as_str()), (DeviceChoice::Auto, None, "info"));
    }
}
