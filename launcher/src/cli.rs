//! The command line, in two stages: what was typed (`options`) and what it means (`config`).
//!
//! Of the environment our own variables, which clap knows all but the secret of, are read here and nowhere else.

mod config;
mod gpu_check;
mod options;
mod service_links;
mod slips;

use std::{
    env,
    ffi::OsString,
    fs::OpenOptions,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    ops::RangeInclusive,
    process::ExitCode,
};

use clap::error::{ContextKind, ContextValue};
use nanoinfer_worker::rank::end_process;

use self::{
    config::Config,
    options::{CommandLine, NodeOptions, ServeOptions, Subcommand, WorkerOptions},
    slips::SECRET,
};
use crate::{
    cluster::Cluster,
    config::{ClusterConfig, Switch},
    environment,
    error::LaunchError,
    hosts::{
        self,
        all_ranks::OtherNodes,
        door::{Arrivals, Door, NodeGuest},
        node::Node,
        secret::Secret,
        surroundings::{self, Role, Said},
    },
    join::{self, Worker},
    log::Log,
    model::{self, ModelError},
    output,
    plan::{self, Plan},
    progress,
    spawn::WorkerBinary,
    supervise,
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
    let is_rank = matches!(typed.command, Some(Subcommand::Worker(_) | Subcommand::Node(_)));
    let result = match typed.command {
        None => serve(typed.serve, &args),
        Some(Subcommand::Node(options)) => node(*options, &args),
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
    lead(configure(options, args)?, None)
}

/// Node 0 serves, others do as it says.
fn node(options: NodeOptions, args: &[OsString]) -> Result<(), LaunchError> {
    let NodeOptions { connect, listen, nodes, node_rank, secret_file, join_timeout, data_host, data_ports, serve } =
        options;
    let config = configure(serve, args)?;
    let said = Said { number: node_rank, nodes, connect };
    let Role { number, nodes, node_zero, told } = surroundings::role(&said, &|name| env::var(name).ok())?;
    tracing::info!("{told}");
    if (number, nodes) == (Some(0), Some(1)) {
        return lead(config, None);
    }
    let secret = match (secret_file, env::var(SECRET)) {
        (Some(file), _) => Secret::read(&file)?,
        (None, Ok(value)) => Secret::from_variable(SECRET, &value)?,
        (None, Err(_)) => {
            return Err(LaunchError::usage(
                "nodes prove to one another that they hold a secret, and none is there",
                format!(
                    "--secret-file FILE or {SECRET} in the environment; `head -c 32 /dev/urandom | base64` makes one"
                ),
            ));
        }
    };
    if number == Some(0) {
        // Before the others are waited for.
        plan::check_hosts(nodes.unwrap_or(1), config.options.cluster.nproc)?;
        let others = nodes.map_or(1, |nodes| nodes - 1);
        let is_sealed = config.options.cluster.link_encryption == Switch::On;
        let door = Door::new(listen_for_nodes(listen, node_zero)?, secret, is_sealed, others)?.open()?;
        return lead(config, Some(Others { door, data_host, data_ports, told }));
    }
    let cluster = config.options.cluster;
    // Its own copy, if it says so and has it.
    let named = cluster.model.as_deref().map(|name| model::resolve_weights(name, cluster.version(), &cluster.caches));
    let weights = match named {
        Some(Err(error @ (ModelError::NoSuchPath { .. } | ModelError::Hub(_)))) => {
            tracing::warn!("--model is not on this host; what its ranks load comes from node 0: {error}");
            None
        }
        named => named.transpose()?,
    };
    hosts::node::run(Node {
        address: node_zero.expect("a node that is not the first knows where that is"),
        secret,
        patience: join_timeout,
        number,
        nodes,
        device: cluster.device.clone(),
        balance: cluster.balance,
        weights,
        caches: cluster.caches.demo.clone(),
        data_host,
        data_ports,
        binary: WorkerBinary::ThisProgram,
        log: cluster.log.clone(),
        shutdown_timeout: config.options.shutdown_timeout,
    })
}

/// Where node 0 awaits the others: as was said, else on all its addresses.
fn listen_for_nodes(said: Option<String>, node_zero: Option<String>) -> Result<TcpListener, LaunchError> {
    let port = match &node_zero {
        Some(address) => address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).ok_or_else(|| {
            LaunchError::usage(
                format!("`{address}` has no port"),
                "--connect takes HOST:PORT, with [] around an IPv6 address",
            )
        })?,
        None => surroundings::PORT,
    };
    let bound = match &said {
        Some(address) => TcpListener::bind(address),
        // A system may have no IPv6.
        None => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))),
    };
    bound.map_err(|source| LaunchError::Bind {
        address: said.unwrap_or_else(|| format!("port {port}")),
        source,
        hint: "--listen takes HOST:PORT with an address of this machine that the other nodes can reach",
    })
}

/// Other nodes on their way to this one.
struct Others {
    door: Arrivals<NodeGuest>,
    data_host: Option<String>,
    data_ports: Option<RangeInclusive<u16>>,
    told: String,
}

/// What was asked for, and a log.
fn configure(typed: ServeOptions, args: &[OsString]) -> Result<Config, LaunchError> {
    let config = Config::new(typed, args, environment::caches())?;
    config.options.cluster.log.begin()?;
    for slip in slips::slips(slips::variables()) {
        tracing::warn!("{slip}");
    }
    Ok(config)
}

/// Makes a plan for this host and others, and carries it out; or tells it, where that was asked for.
fn lead(config: Config, others: Option<Others>) -> Result<(), LaunchError> {
    let Config { mut options, http } = config;
    if options.plan {
        let (plan, nodes) = plan(&options.cluster, others)?;
        nodes.into_iter().for_each(OtherNodes::end);
        // A start fails with the same words.
        let warning = plan.check_memory().err().map(|error| format!("\nwarning: {error}")).unwrap_or_default();
        output::write(format_args!("{plan}{warning}\n"))?;
        return Ok(());
    }
    if let Some(path) = &options.cluster.trace {
        let opened = OpenOptions::new().append(true).create(true).open(path);
        opened.map_err(|error| {
            let problem = format!("--trace {}: {error}", path.display());
            LaunchError::usage(problem, "it takes a file that can be written, in a folder that is there")
        })?;
    }
    let listener = match supervise::bind(&options.host, options.port) {
        Ok(listener) => listener,
        // Bad usage is told first, as far as it shows without a download.
        Err(taken) => {
            options.cluster.caches.hub.offline = true;
            return match Plan::here(&options.cluster) {
                Err(LaunchError::Model(ModelError::Hub(_))) | Ok(_) => Err(taken),
                Err(error) => Err(error),
            };
        }
    };
    supervise::serve(listener, http, options.shutdown_timeout, move || {
        let (plan, nodes) = plan(&options.cluster, others)?;
        plan.log();
        progress::during(&plan, || Cluster::on_hosts(&plan, nodes))
    })
}

/// A plan for this host and those of the other nodes, which are waited for.
fn plan(cluster: &ClusterConfig, others: Option<Others>) -> Result<(Plan, Option<OtherNodes>), LaunchError> {
    let told = others.as_ref().map(|others| others.told.clone());
    let mut nodes = None;
    let made = Plan::new(cluster, || {
        let Some(Others { door, data_host, data_ports, .. }) = others else {
            return Ok(vec![Plan::this_host(cluster)]);
        };
        let here = Plan::this_of_several(cluster);
        let arrived = nodes.insert(OtherNodes::await_all(door, data_host, data_ports)?);
        Ok([here].into_iter().chain(arrived.hosts()).collect())
    });
    let mut plan = made.inspect_err(|_| nodes.take().into_iter().for_each(OtherNodes::end))?;
    told.into_iter().for_each(|told| plan.note(told));
    Ok((plan, nodes))
}

fn work(options: WorkerOptions) -> Result<(), LaunchError> {
    let WorkerOptions { rank, world, parent, log, log_format } = options;
    Log { filter: log, format: log_format }.begin()?;
    join::run(Worker { rank, world, parent })
}
