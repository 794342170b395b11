//! A whole cluster as a value: start it, ask it, shut it down.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nanoinfer_coordinator::{
    TextEngine,
    config::EngineConfig,
    engine::{self, Lost, RankSource, SourceError},
    handle::EngineHandle,
};
use nanoinfer_shared::{
    comm::ShmSegment,
    handshake::{self, Identity},
    link::{self, ControlLink, Socket},
    protocol::{CommKind, FromRank, ToRank},
};
use nanoinfer_worker::{
    rank::{self, OnLost, RankSetup},
    trace::TraceFile,
};

use crate::{
    build::BUILD_ID,
    config::{ClusterConfig, OnRankLoss},
    error::LaunchError,
    hosts::gather::Arrivals,
    plan::{Placement, Plan},
    rank_end::{CAUSE_DEADLINE, HowEnded, RankEnd, RankEnds, Reports},
    spawn::{self, MemoryOfRank, RankProcesses},
};

/// Epoch of ranks that this process starts itself: their sockets are new, so no earlier life can speak on them.
const EPOCH: u32 = 1;

/// A running cluster. Dropping it ends all its ranks.
#[derive(Debug)]
pub struct Cluster {
    text_engine: TextEngine,
    handle: EngineHandle,
    ranks: Ranks,
    /// Of ranks on this host.
    ends: RankEnds,
    /// Ranks that end are started again: only the engine's end is one.
    survives: bool,
    /// Closed when it is dropped: after the ranks, which append to it.
    trace: Option<TraceFile>,
}

/// The ranks' side, as far as this process owns it.
#[derive(Debug)]
enum Ranks {
    Thread(JoinHandle<()>),
    /// The engine starts some of them again.
    Processes(Arc<RankProcesses>),
    /// They end when their control links close.
    Elsewhere,
}

/// What an engine begins with: links in rank order, and where others come from.
type Members = (Vec<ControlLink<ToRank, FromRank>>, Option<Box<dyn RankSource>>);

impl Cluster {
    /// Resolves the model, starts the ranks and the engine; returns when requests can be answered.
    ///
    /// ```no_run
    /// use futures_util::StreamExt;
    /// use nanoinfer_coordinator::{request::SamplingParams, text::{GenerateRequest, MaxTokens, Prompt}};
    /// use nanoinfer_launch::{Cluster, ClusterConfig};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = Cluster::start(ClusterConfig { model: Some("gpt2".into()), ..Default::default() })?;
    /// let prompt = Prompt::Text { text: "Once upon a time".into(), add_special_tokens: true };
    /// let request = GenerateRequest::new(prompt, SamplingParams::neutral(42), MaxTokens::Default(100));
    /// let mut story = cluster.text_engine().generate(request).await?;
    /// while let Some(chunk) = story.next().await {
    ///     print!("{}", chunk?.text);
    /// }
    /// cluster.shutdown();
    /// # Ok(())
    /// # }
    /// ```
    /// Blocks: within an async runtime, call it from a blocking thread.
    ///
    /// # Errors
    /// Says what is wrong with the model or the options, or which rank failed and how.
    pub fn start(config: ClusterConfig) -> Result<Self, LaunchError> {
        let plan = Plan::new(&config, Placement::Here)?;
        Self::carry_out(&plan)
    }

    /// Starts the ranks of a plan on this host.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn carry_out(plan: &Plan) -> Result<Self, LaunchError> {
        plan.check_memory()?;
        let world = plan.partition.world();
        let (report, mut ends) = RankEnds::new();
        let (members, ranks) = if world == 1 { on_a_thread(report)? } else { as_processes(plan, report, &mut ends)? };
        Self::join(plan, members, plan.engine_config(vec![world; world]), ranks, ends)
    }

    /// Waits for the ranks of a plan to come over the network.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub(crate) fn gather(plan: &Plan, arrivals: Arrivals) -> Result<Self, LaunchError> {
        let (arrived, gathering) = arrivals.all()?;
        let on_host = |host: &str| arrived.iter().filter(|other| other.host == host).count();
        let ranks_on_host: Vec<usize> = arrived.iter().map(|rank| on_host(&rank.host)).collect();
        let links = arrived.into_iter().map(|rank| rank.link).collect();
        // Nobody reports: the ranks are other hosts' processes.
        let (_, ends) = RankEnds::new();
        let ranks_per_memory = ranks_on_host.iter().copied().max().unwrap_or(1);
        let mut engine_config = plan.engine_config(ranks_on_host);
        engine_config.kv.ranks_per_memory = ranks_per_memory;
        let source = survives(plan).then(|| Box::new(gathering) as Box<dyn RankSource>);
        Self::join(plan, (links, source), engine_config, Ranks::Elsewhere, ends)
    }

    fn join(
        plan: &Plan,
        (links, source): Members,
        engine_config: EngineConfig,
        ranks: Ranks,
        mut ends: RankEnds,
    ) -> Result<Self, LaunchError> {
        let trace = plan.config.trace.as_ref().map(|path| {
            TraceFile::create(path, plan.partition.world())
                .map_err(LaunchError::system(format!("write the trace {}", path.display())))
        });
        let trace = trace.transpose()?;
        let survives = source.is_some();
        let handle = engine::start(links, source, engine_config).map_err(|error| {
            // Where a rank died of it, its own words say more.
            cause(&mut ends).unwrap_or(LaunchError::Start(error))
        })?;
        let text_engine = TextEngine::new(handle.clone(), plan.text.clone(), Arc::new(plan.model_card()));
        Ok(Self { text_engine, handle, ranks, ends, survives, trace })
    }

    /// Where text goes in and comes out.
    pub fn text_engine(&self) -> TextEngine {
        self.text_engine.clone()
    }

    /// Where token ids go in and come out.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// Waits until the cluster fails, and says why; forever, if it does not. An end that was asked for
    /// ([`EngineHandle::stop`]) is no failure.
    pub async fn failed(&mut self) -> LaunchError {
        let status = self.handle.status();
        tokio::select! {
            Some(ends) = self.ends.failures(Duration::MAX), if !self.survives => return LaunchError::RanksEnded { ends },
            () = self.handle.ended() => {}
        }
        if status.failure().is_none() && self.handle.is_stopping() {
            return std::future::pending().await;
        }
        match self.ends.failures(CAUSE_DEADLINE).await {
            Some(ends) => LaunchError::RanksEnded { ends },
            None => LaunchError::EngineEnded {
                reason: status.failure().map_or_else(|| "nobody asked it to".into(), str::to_owned),
            },
        }
    }

    /// Takes no new requests, cuts off those under way, lets the ranks end, and ends those that do not.
    pub fn shutdown(self) {
        let Self { text_engine, handle, ranks, ends, trace, .. } = self;
        handle.cut_off();
        // The engine ends with its last handle, and tells the ranks.
        drop((text_engine, handle));
        match ranks {
            Ranks::Thread(watcher) => spawn::wait_for([&watcher], spawn::END_DEADLINE),
            // What is left after the wait is killed by the drop.
            Ranks::Processes(processes) => processes.wait(),
            Ranks::Elsewhere => {}
        }
        drop((ends, trace));
    }
}

/// Runs the only rank on its own thread.
fn on_a_thread(report: Reports) -> Result<(Members, Ranks), LaunchError> {
    let (ours, theirs) = link::in_memory();
    let setup = RankSetup {
        link: theirs,
        identity: Identity { build_id: BUILD_ID.into(), world: 1, rank: 0, host: String::new() },
        epoch: EPOCH,
        memory: None,
        weights: None,
        data_host: "127.0.0.1".into(),
        on_lost: OnLost::Return,
    };
    let rank = thread::Builder::new()
        .name("rank 0".into())
        .spawn(move || rank::run(setup))
        .map_err(LaunchError::system("start a thread"))?;
    let watcher = thread::Builder::new()
        .name("watch rank 0".into())
        .spawn(move || {
            let how = match rank.join() {
                Ok(Ok(())) => HowEnded::Returned,
                Ok(Err(error)) => HowEnded::Failed(error.to_string()),
                Err(_) => HowEnded::Failed("it panicked".into()),
            };
            report.ended(RankEnd { rank: 0, how, last_lines: Vec::new() });
        })
        .map_err(LaunchError::system("start a thread"))?;
    Ok(((vec![ours], None), Ranks::Thread(watcher)))
}

/// Starts one process a rank, and meets them.
fn as_processes(plan: &Plan, report: Reports, ends: &mut RankEnds) -> Result<(Members, Ranks), LaunchError> {
    let world = plan.partition.world();
    let binary = plan.config.worker_binary.as_ref().ok_or_else(|| {
        LaunchError::usage(
            format!("{world} ranks are {world} processes, and this program has not named one to run them"),
            "set ClusterConfig::worker_binary to the path of a nanoinfer-launch of the same build",
        )
    })?;
    let (processes, sockets) = RankProcesses::start(world, binary, &plan.config.log, &report)?;
    let processes = Arc::new(processes);
    let memories =
        (0..world).map(|_| MemoryOfRank::new()).collect::<Result<_, _>>().map_err(LaunchError::SharedMemory)?;
    let by_memory = plan.load.comm == CommKind::Shm;
    let mut source = SpawnedRanks { processes: processes.clone(), memories, by_memory };
    let mut links = Vec::with_capacity(world);
    for (rank, socket) in sockets.into_iter().enumerate() {
        links.push(source.meet(rank, socket).map_err(|error| cause(ends).unwrap_or(error))?);
    }
    source.send_segments(0).map_err(LaunchError::SharedMemory)?;
    let source = survives(plan).then(|| Box::new(source) as Box<dyn RankSource>);
    Ok(((links, source), Ranks::Processes(processes)))
}

/// Whether the loss of a rank is borne.
fn survives(plan: &Plan) -> bool {
    plan.config.on_rank_loss == OnRankLoss::Restart && plan.config.rank_restarts.most > 0
}

/// Ranks that are processes of this host.
#[derive(Debug)]
struct SpawnedRanks {
    processes: Arc<RankProcesses>,
    memories: Vec<MemoryOfRank>,
    /// Their data link is shared memory.
    by_memory: bool,
}

impl SpawnedRanks {
    /// Shakes hands with a rank that was just started, and hands it its memory.
    fn meet(&mut self, rank: usize, socket: UnixStream) -> Result<ControlLink<ToRank, FromRank>, LaunchError> {
        let system = |what: &str| LaunchError::system(format!("{what} rank {rank}"));
        let world = self.memories.len();
        let expected = Identity { build_id: BUILD_ID.into(), world, rank, host: String::new() };
        let mut handle = Socket::Unix(socket.try_clone().map_err(system("keep the socket of"))?);
        let only = |joiner| if joiner == rank { Ok(()) } else { Err(format!("rank {joiner} is not rank {rank}")) };
        // The key is empty: the inherited socket is the proof.
        let until = Instant::now() + handshake::HANDSHAKE_TIMEOUT;
        let admission = handshake::Admission { expected: &expected, key: &[], epoch: EPOCH, until };
        handshake::admit(&mut handle, admission, only).map_err(|source| LaunchError::Handshake { rank, source })?;
        self.memories[rank].hand_over(&socket).map_err(system("hand memory to"))?;
        ControlLink::over(handle, EPOCH).map_err(|source| LaunchError::Link { rank, source })
    }

    /// Hands every rank the memory of the data link for start number `group`, where the link is memory.
    fn send_segments(&self, group: u32) -> io::Result<()> {
        if self.by_memory {
            let segment = ShmSegment::create(self.memories.len())?;
            for memory in &self.memories {
                // A rank that is gone is missed by who waits for it.
                let _ = memory.send_segment(group, &segment);
            }
        }
        Ok(())
    }
}

impl RankSource for SpawnedRanks {
    fn replace(
        &mut self,
        group: u32,
        lost: &[Lost],
        _given_up: &dyn Fn() -> bool,
    ) -> Result<Vec<ControlLink<ToRank, FromRank>>, SourceError> {
        for Lost { rank, is_corrupt } in lost {
            let end = self.processes.end_rank(*rank);
            if let Some(end) = &end {
                tracing::warn!("{end}");
            }
            if *is_corrupt || end.is_some_and(|end| end.is_corrupt()) {
                self.memories[*rank] = MemoryOfRank::new()?;
            }
        }
        // All begin before the first is waited for.
        let sockets = lost.iter().map(|lost| self.processes.start_rank(lost.rank)).collect::<Result<Vec<_>, _>>()?;
        let met = lost.iter().zip(sockets).map(|(lost, socket)| self.meet(lost.rank, socket));
        let links = met.collect::<Result<_, _>>()?;
        self.send_segments(group)?;
        Ok(links)
    }
}

/// The ends of the ranks that made something else fail, if they come to light soon.
fn cause(ends: &mut RankEnds) -> Option<LaunchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().ok()?;
    runtime.block_on(ends.failures(CAUSE_DEADLINE)).map(|ends| LaunchError::RanksEnded { ends })
}

#[cfg(test)]
mod tests {
    use nanoinfer_coordinator::request::{Event, Request};

    use super::*;
    use crate::{
        config::DeviceChoice,
        model::{Caches, HubAccess},
    };

    #[test]
    fn a_shutdown_cuts_off_what_runs() {
        let root = tempfile::tempdir().unwrap();
        let hub = HubAccess::offline(root.path().join("hub"));
        let caches = Caches { demo: vec![root.path().join("demo")], hub };
        let config = ClusterConfig { threads: Some(1), device: DeviceChoice::Cpu, ..ClusterConfig::new(caches) };
        let cluster = Cluster::start(config).unwrap();
        let mut sequences = cluster.handle().submit_all(vec![Request::greedy(vec![1], 250); 32]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(matches!(runtime.block_on(sequences[0].next()), Some(Event::Token { .. })));
        cluster.shutdown();
        for events in &mut sequences {
            let mut last = None;
            while let Some(event) = runtime.block_on(events.next()) {
                last = Some(event);
            }
            assert!(matches!(&last, Some(Event::Failed(reason)) if reason.contains("shutting down")), "{last:?}");
        }
    }
}
