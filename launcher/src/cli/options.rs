//! What was typed: on the command line, in `NANOINFER_*`, or in a TOML file, whose keys are the same words.
//!
//! What a cluster is asked to be is a part of it, defined elsewhere: [`ClusterConfig`].

use std::{ffi::OsString, ops::RangeInclusive, path::PathBuf, time::Duration};

use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, builder::Resettable};

use super::service_links;
use crate::{
    config::{ClusterConfig, duration, positive},
    log::LogFormat,
    size::ByteSize,
};

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
                    nanoinfer-launch node --nproc 4                     one of several hosts, as srun or mpirun starts it\n  \
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
        let (mut command, matches) = Self::matches(args)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }

    /// The same, with where each value is from.
    pub(super) fn matches(
        args: impl IntoIterator<Item: Into<OsString> + Clone>,
    ) -> Result<(Command, ArgMatches), clap::Error> {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let is_typed = |flag: &str| args.iter().any(|arg| arg.to_string_lossy().split('=').next() == Some(flag));
        // Of a key and a file with one, which exclude one another, what was typed wins over the environment.
        let is_settled = |arg: &clap::Arg| match arg.get_id().as_str() {
            "api_key" => is_typed("--api-key-file"),
            "api_key_file" => is_typed("--api-key"),
            _ => false,
        };
        let ours = |arg: clap::Arg| {
            // The help of an option tells its default itself.
            let has_values = arg.get_action().takes_values();
            let arg = arg.hide_default_value(has_values);
            let is_left_out = is_settled(&arg) || arg.get_env().is_some_and(service_links::is_one);
            if is_left_out { arg.env(Resettable::Reset) } else { arg }
        };
        let with_limits_last = |command: Command| {
            let limits = command.get_arguments().filter(|arg| arg.get_help_heading() == Some(LIMITS));
            let limits: Vec<_> = limits.map(|arg| arg.get_id().to_string()).collect();
            // What is changed goes to the end.
            limits.iter().fold(command, |command, limit| command.mut_arg(limit, |arg| arg))
        };
        let whole = |command: Command| with_limits_last(command.mut_args(ours));
        let mut command = whole(Self::command()).mut_subcommands(whole);
        let matches = command.try_get_matches_from_mut(&args)?;
        Ok((command, matches))
    }
}

/// Heading of what bounds a server, after all others but in the definitions.
const LIMITS: &str = "Limits";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Subcommand {
    /// Serve as one of several hosts, one process each, started by Slurm, mpirun, Kubernetes or by hand; node 0 answers requests.
    Node(Box<NodeOptions>),
    /// Run one rank; only for who starts it.
    #[command(hide = true)]
    Worker(WorkerOptions),
    /// Compare what GPUs compute with the CPU, and measure what they cost.
    GpuCheck(GpuCheckOptions),
}

#[derive(Debug, Args)]
pub(super) struct ServeOptions {
    /// TOML file with any of these options, without the dashes.
    #[arg(long, env = "NANOINFER_CONFIG", value_name = "FILE", help_heading = "Configuration")]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) cluster: ClusterConfig,
    /// Address to listen on [default: 127.0.0.1].
    #[arg(long, env = "NANOINFER_HOST", value_name = "HOST", default_value = "127.0.0.1", help_heading = "Server")]
    pub(super) host: String,
    /// Port to listen on; 0 takes any free one [default: 8000].
    #[arg(long, env = "NANOINFER_PORT", value_name = "PORT", default_value_t = 8000, help_heading = "Server")]
    pub(super) port: u16,
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
    pub(super) cors_origin: Vec<String>,
    /// Names of this server besides localhost, like chat.example, separated by commas; * for all. Looked at without a key on
    /// a loopback address, where a name that is not known may be another site's [default: none].
    #[arg(long, env = "NANOINFER_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',', help_heading = "Server")]
    pub(super) allowed_host: Vec<String>,
    /// Memory that the answer to one request may take, like 64MiB; beyond it 400 [default: 256MiB].
    #[arg(long, env = "NANOINFER_MAX_REQUEST_MEMORY", value_name = "SIZE", help_heading = LIMITS)]
    pub(super) max_request_memory: Option<ByteSize>,
    /// How long running requests may take to finish after SIGTERM, like 30 or 2m [default: 30].
    #[arg(long, env = "NANOINFER_SHUTDOWN_TIMEOUT", value_name = "SECONDS", value_parser = duration, default_value = "30", help_heading = "Server")]
    pub(super) shutdown_timeout: Duration,
    /// Print what every rank will hold, then stop without loading anything.
    #[arg(long, env = "NANOINFER_PLAN", help_heading = "Cluster")]
    pub(super) plan: bool,
    /// What to log to standard error: error, warn, info, debug, trace, or a filter like RUST_LOG's [default: info].
    #[arg(long, env = "NANOINFER_LOG", value_name = "FILTER", help_heading = "Configuration")]
    pub(super) log: Option<String>,
    /// How the log looks: lines for people, or an object of JSON a line [default: text].
    #[arg(long, env = "NANOINFER_LOG_FORMAT", value_enum, default_value = "text", help_heading = "Configuration")]
    pub(super) log_format: LogFormat,
    /// End with this process, which started us.
    #[arg(long, hide = true, value_name = "PID")]
    pub(super) parent: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct NodeOptions {
    /// Where node 0 is, HOST:PORT, the same on every node [default: as Slurm, Kubernetes or torchrun say].
    #[arg(long, env = "NANOINFER_CONNECT", value_name = "ADDR", help_heading = NODES)]
    pub(super) connect: Option<String>,
    /// Address at which node 0 awaits the others, HOST:PORT [default: all addresses, with the port of --connect or 20000].
    #[arg(long, env = "NANOINFER_LISTEN", value_name = "ADDR", help_heading = NODES)]
    pub(super) listen: Option<String>,
    /// How many nodes there are [default: as who started this says, else 1].
    #[arg(long, env = "NANOINFER_NODES", value_name = "N", value_parser = positive, help_heading = NODES)]
    pub(super) nodes: Option<usize>,
    /// Which of them this is, from 0 [default: as who started this says; else 0, or with --connect any that is free].
    #[arg(long, env = "NANOINFER_NODE_RANK", value_name = "I", help_heading = NODES)]
    pub(super) node_rank: Option<usize>,
    /// File with the secret that all nodes hold, which may stand in NANOINFER_SECRET instead.
    #[arg(long, env = "NANOINFER_SECRET_FILE", value_name = "FILE", help_heading = NODES)]
    pub(super) secret_file: Option<PathBuf>,
    /// How long to wait for node 0 to be there, like 30 or 5m [default: 5m].
    #[arg(long, env = "NANOINFER_JOIN_TIMEOUT", value_name = "SECONDS", value_parser = duration, default_value = "5m", help_heading = NODES)]
    pub(super) join_timeout: Duration,
    /// Address of this host that ranks of others can reach [default: the one between it and node 0].
    #[arg(long, env = "NANOINFER_DATA_HOST", value_name = "HOST", help_heading = NODES)]
    pub(super) data_host: Option<String>,
    /// Ports for links to ranks of other hosts, like 21000-21031: one a rank, and on node 0 one more [default: any free ones].
    #[arg(long, env = "NANOINFER_DATA_PORTS", value_name = "A-B", value_parser = ports, help_heading = NODES)]
    pub(super) data_ports: Option<RangeInclusive<u16>>,
    #[command(flatten)]
    pub(super) serve: ServeOptions,
}

/// Heading of what makes hosts one cluster.
const NODES: &str = "Nodes";

/// Like `21000-21031`.
fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || "expected two ports, like 21000-21031".to_string();
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let port = |text: &str| text.trim().parse().ok().filter(|&port: &u16| port > 0).ok_or_else(wrong);
    let range = port(first)?..=port(last)?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

#[derive(Debug, Args)]
pub(super) struct WorkerOptions {
    /// Which rank this is, from 0.
    #[arg(long, value_name = "R")]
    pub(super) rank: usize,
    /// How many ranks there are.
    #[arg(long, value_name = "N")]
    pub(super) world: usize,
    /// The process that must still be our parent.
    #[arg(long, value_name = "PID")]
    pub(super) parent: u32,
    /// What to log to standard error.
    #[arg(long, value_name = "FILTER")]
    pub(super) log: String,
    /// How the log looks.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(super) struct GpuCheckOptions {
    /// Which GPUs, by number, separated by commas [default: all].
    #[arg(long, value_name = "GPUS", value_delimiter = ',')]
    pub(super) gpu: Vec<u32>,
    /// One part of the check: every kernel, whole steps, or what decode steps and their kernels take [default: all].
    #[arg(long, value_name = "PART")]
    pub(super) only: Option<CheckedPart>,
    /// Print each finding as a line of JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// One of two processes that the check starts to add up over NCCL.
    #[arg(long, value_name = "RANK", hide = true)]
    pub(super) nccl_rank: Option<usize>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum CheckedPart {
    Kernels,
    Steps,
    Decode,
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
    fn the_help_has_its_order_and_tells_a_default_once() {
        let help = |arguments: &[&str]| CommandLine::parse_from_all(arguments).unwrap_err().to_string();
        for help in [help(&["x", "--help"]), help(&["x", "node", "-h"])] {
            let at = |words: &str| help.find(words).unwrap_or_else(|| panic!("no {words} in {help}"));
            let order = [
                "Configuration:",
                "Model:",
                "Cluster:",
                "Server:",
                "Limits:",
                "--max-request-memory",
                "--no-prefix-cache",
            ];
            assert!(order.map(at).is_sorted(), "{help}");
            assert!(help.matches("[default: 8000]").count() == 1 && !help.contains("[default: false]"), "{help}");
        }
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
        assert!(say(&["x", "--nproc", "0"]).contains("'0' for '--nproc <N>': expected a whole number from 1 to"));
        assert!(say(&["x", "--nproc", "4294967296"]).contains("from 1 to 4294967295"));
        assert!(say(&["x", "--isa", "avx51"]).contains("avx512-bf16"));
        for slip in ["21000", "21031-21000", "0-3", "a-b", "1-70000"] {
            assert!(say(&["x", "node", "--data-ports", slip]).contains("like 21000-21031"), "{slip}");
        }
    }
}
