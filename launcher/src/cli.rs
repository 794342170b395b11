//! The command line, in two stages: what was typed (`options`) and what it means (`config`).
//!
//! Of the environment our own variables, which clap knows, are read here and nowhere else.

mod config;
mod gpu_check;
mod options;
mod service_links;
mod slips;

use std::{ffi::OsString, net::TcpListener, process::ExitCode};

use clap::error::{ContextKind, ContextValue};
use nanoinfer_worker::rank::end_process;
use tracing_subscriber::EnvFilter;

use self::{
    config::Config,
    options::{CommandLine, CoordinatorOptions, ServeOptions, Subcommand, WorkerOptions},
};
use crate::{
    cluster::Cluster,
    config::ClusterConfig,
    environment,
    error::LaunchError,
    hosts::{gather, secret::Secret},
    join::{self, Door, Worker},
    model::{self, ModelError},
    output,
    plan::{Placement, Plan},
    progress, supervise,
};

/// Does what `nanoinfer-launch` does with these arguments (the first is the program's name), and answers with its exit
/// code: 0 after a clean stop, 2 for bad usage or a bad model, 1 for everything else. A rank, and what fails, ends the process itself.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let typed = match CommandLine::parse_from_all(&args) {
        Ok(typed) => typed,
        Err(error) => {
            let code = output::parser_said(&error);
            if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
                && let Some(variable) = slips::source_of(flag, &args)
            {
                crate::say(format_args!("  hint: the value is that of {variable} in the environment"));
            }
            if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) {
                crate::say(format_args!("  hint: a model is named with --model {word}"));
            }
            return code;
        }
    };
    let is_rank = matches!(typed.command, Some(Subcommand::Worker(_)));
    let result = match typed.command {
        None => serve(typed.serve, &args),
        Some(Subcommand::Coordinator(options)) => coordinate(*options, &args),
        Some(Subcommand::Worker(options)) => work(options),
        Some(Subcommand::GpuCheck(options)) => match gpu_check::run(&options) {
            // The table has said why.
            Ok(false) => return ExitCode::FAILURE,
            checked => checked.map(drop),
        },
    };
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            crate::say(format_args!("error: {error}"));
            error.exit_code()
        }
    };
    // Where a thread may still be inside a GPU's driver.
    if is_rank || code != 0 {
        end_process(code.into());
    }
    ExitCode::SUCCESS
}

/// What these flags, the environment and a `--config` file say of a cluster.
///
/// # Errors
/// In words, when they are wrong.
pub fn cluster_config(flags: impl IntoIterator<Item = String>) -> Result<ClusterConfig, String> {
    let args: Vec<OsString> = ["nanoinfer-launch".to_owned()].into_iter().chain(flags).map(OsString::from).collect();
    let typed = CommandLine::parse_from_all(&args).map_err(|error| config::reason(&error.to_string()))?;
    let config = Config::new(typed.serve, &args, environment::caches()).map_err(|error| error.to_string())?;
    Ok(config.options.cluster)
}

fn serve(options: ServeOptions, args: &[OsString]) -> Result<(), LaunchError> {
    if let Some(parent) = options.parent {
        join::die_with_parent(parent).map_err(LaunchError::system("start"))?;
    }
    let Some((config, listener)) = prepare(options, args, Placement::Here)? else { return Ok(()) };
    supervise(config, listener, Placement::Here, Cluster::carry_out)
}

fn coordinate(options: CoordinatorOptions, args: &[OsString]) -> Result<(), LaunchError> {
    let Some((config, listener)) = prepare(options.serve, args, Placement::Elsewhere)? else { return Ok(()) };
    // Not before there is a log: it may have something to say of the file.
    let secret = Secret::read(&options.secret_file)?;
    let arrivals = gather::Door::listen(&options.listen, secret)?.open(config.options.cluster.nproc)?;
    supervise(config, listener, Placement::Elsewhere, |plan| Cluster::gather(plan, arrivals))
}

/// What both servers do first; none where `--plan` was all that was asked for.
fn prepare(
    typed: ServeOptions,
    args: &[OsString],
    placement: Placement,
) -> Result<Option<(Config, TcpListener)>, LaunchError> {
    let mut config = Config::new(typed, args, environment::caches())?;
    let options = &mut config.options;
    log_to_stderr(&options.cluster.log)?;
    for slip in slips::slips(slips::variables()) {
        tracing::warn!("{slip}");
    }
    if options.plan {
        let plan = Plan::new(&options.cluster, placement)?;
        // A start fails with the same words.
        let warning = plan.check_memory().err().map(|error| format!("\nwarning: {error}")).unwrap_or_default();
        output::write(format_args!("{plan}{warning}\n"))?;
        return Ok(None);
    }
    match supervise::bind(&options.host, options.port) {
        Ok(listener) => Ok(Some((config, listener))),
        // Bad usage is told first, as far as it shows without a download.
        Err(taken) => {
            options.cluster.caches.hub.offline = true;
            match Plan::new(&options.cluster, placement) {
                Err(LaunchError::Model(ModelError::Hub(_))) | Ok(_) => Err(taken),
                Err(error) => Err(error),
            }
        }
    }
}

/// What both servers do then: tell the plan to whoever reads the log, carry it out with `start`, and serve.
fn supervise(
    Config { options, http }: Config,
    listener: TcpListener,
    placement: Placement,
    start: impl FnOnce(&Plan) -> Result<Cluster, LaunchError> + Send + 'static,
) -> Result<(), LaunchError> {
    supervise::serve(listener, http, options.shutdown_timeout, move || {
        let plan = Plan::new(&options.cluster, placement)?;
        tracing::info!("\n{plan}");
        progress::during(&plan, || start(&plan))
    })
}

fn work(options: WorkerOptions) -> Result<(), LaunchError> {
    log_to_stderr(options.log.as_deref().unwrap_or(config::default_log()))?;
    let door = match (options.parent, options.connect, options.secret_file) {
        (Some(parent), None, None) if options.inherited => Door::Inherited { parent },
        (None, Some(address), Some(file)) => {
            let caches = environment::caches();
            let version = model::Version { revision: options.revision.as_deref(), step: options.step };
            let weights = |name: String| model::resolve_weights(&name, version, &caches);
            let weights = options.model.map(weights).transpose()?;
            Door::Connect { address, secret: Secret::read(&file)?, weights, data_host: options.data_host }
        }
        _ => {
            return Err(LaunchError::usage(
                "a rank started by hand needs the coordinator's address and the cluster's secret",
                "worker --rank R --world N --connect HOST:PORT --secret-file FILE",
            ));
        }
    };
    join::run(Worker { rank: options.rank, world: options.world, door })
}

fn log_to_stderr(filter: &str) -> Result<(), LaunchError> {
    let wrong = |error| LaunchError::Config(format!("--log {filter}: {error}"));
    let filter = EnvFilter::try_new(filter).map_err(wrong)?;
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    // Where nobody reads standard error any more, a complaint about that would be a panic. An embedding program may have
    // installed a log of its own.
    let _ = tracing::subscriber::set_global_default(log.log_internal_errors(false).finish());
    Ok(())
}
