//! How a rank that is a process of its own joins its cluster: the `worker` subcommand, which only a launcher starts.
//!
//! It inherits a socket as its standard input, by which it gets memory and is told where its coordinator is: at the other end, or on
//! node 0, which it reaches over TCP with a key that it was handed. So nothing of the cluster stands among its arguments.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    time::Instant,
};

use nanoinfer_shared::{
    handshake::{self, HANDSHAKE_TIMEOUT, HandshakeError, Identity},
    link::{ControlLink, Socket, Terms},
};
use nanoinfer_worker::rank::{self, HostMemory, OnLost, RankSetup};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::{
    build::BUILD_ID,
    error::LaunchError,
    hosts::knock::{KNOCK_DEADLINE, Refusal, knock_until},
    spawn::{self, OfHost, Way},
};

/// One rank of a cluster, started by the process with the number `parent`.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) parent: u32,
}

/// Serves as a rank until the coordinator ends the cluster.
///
/// # Errors
/// When the rank cannot join, or fails.
pub(crate) fn run(Worker { rank, world, parent }: Worker) -> Result<(), LaunchError> {
    // A name for `ps` and `top`; a kernel that refuses it is no reason to stop.
    let _ = std::ffi::CString::new(format!("rank {rank}")).map(|name| rustix::thread::set_name(&name));
    let identity = Identity { build_id: BUILD_ID.into(), world, rank };
    let failed = |error: Refusal| {
        let (who, address, reason) = (format!("rank {rank}"), "standard input".into(), error.to_string());
        LaunchError::Join { who, address, reason }
    };
    let (socket, terms, memory, way) = inherit(&identity, parent).map_err(failed)?;
    let (socket, terms) = match way.node_zero {
        None => (socket, terms),
        Some((address, key)) => {
            let until = Instant::now() + KNOCK_DEADLINE;
            let joined = knock_until(&format!("rank {rank}"), &identity, &address.to_string(), &key, until)?;
            (joined.socket, joined.terms)
        }
    };
    let epoch = terms.epoch;
    let link = ControlLink::over(socket, terms).map_err(|source| LaunchError::Link { rank, source })?;
    let OfHost { weights, data_host, data_ports } = way.of_host;
    let memory = Some(memory);
    let on_lost = OnLost::Exit;
    Ok(rank::run(RankSetup { link, identity, epoch, memory, weights, data_host, data_ports, on_lost })?)
}

/// Asks the kernel to kill this process when the thread that started it ends, unless `parent` is gone already.
pub(crate) fn die_with_parent(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().map(Pid::as_raw_pid) == i32::try_from(parent).ok() {
        Ok(())
    } else {
        Err(io::Error::other(format!("process {parent}, which started it, is gone")))
    }
}

/// The socket, what was agreed on, memory that the launcher holds too, and where the coordinator is.
fn inherit(identity: &Identity, parent: u32) -> Result<(Socket, Terms, HostMemory, Way), Refusal> {
    die_with_parent(parent)?;
    spawn::leave_stopping_to_the_launcher();
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut handle = Socket::Unix(socket.try_clone()?);
    let terms = handshake::join(&mut handle, identity, &[], Instant::now() + HANDSHAKE_TIMEOUT)?;
    let memory = spawn::receive_memory(&socket)?;
    let mut told = ControlLink::<(), Way>::over(handle.try_clone()?, terms.epoch).map_err(HandshakeError::from)?;
    let way = told.receiver.receive().map_err(HandshakeError::from)?;
    Ok((handle, terms, memory, way))
}
