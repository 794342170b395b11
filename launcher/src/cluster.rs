//! A whole cluster as a value: start it, ask it, shut it down.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use nanoinfer_coordinator::{
    TextEngine,
    engine::{self, Lost, RankSource},
    handle::EngineHandle,
};
use nanoinfer_shared::{
    handshake::Identity,
    link::{self, ControlLink},
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
    host_ranks::{EPOCH, HostRanks},
    hosts::{
        all_ranks::{AllRanks, OtherNodes},
        node_links::NodeLinks,
        slices::Lender,
    },
    plan::Plan,
    rank_end::{CAUSE_DEADLINE, HowEnded, RankEnd, RankEnds, Reports},
    spawn::{self, RankProcesses},
};

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
    /// The engine starts some of them again. Other nodes end as they are told, or as the last of their links is dropped.
    Processes(Arc<RankProcesses>, Option<NodeLinks>),
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
        let plan = Plan::here(&config)?;
        Self::carry_out(&plan)
    }

    /// Starts the ranks of a plan for this host alone.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn carry_out(plan: &Plan) -> Result<Self, LaunchError> {
        Self::on_hosts(plan, None)
    }

    /// Starts the ranks of a plan: on this host, and on those of the other nodes.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub(crate) fn on_hosts(plan: &Plan, others: Option<OtherNodes>) -> Result<Self, LaunchError> {
        plan.check_memory()?;
        let (report, mut ends) = RankEnds::new();
        let (members, ranks) = if plan.partition.world() == 1 {
            on_a_thread(report)?
        } else {
            as_processes(plan, others, report, &mut ends)?
        };
        Self::join(plan, members, ranks, ends)
    }

    fn join(plan: &Plan, (links, source): Members, ranks: Ranks, mut ends: RankEnds) -> Result<Self, LaunchError> {
        let trace = plan.config.trace.as_ref().map(|path| {
            TraceFile::create(path).map_err(LaunchError::system(format!("write the trace {}", path.display())))
        });
        let trace = trace.transpose()?;
        let survives = source.is_some();
        let handle = engine::start(links, source, plan.engine_config()).map_err(|error| {
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

    /// Takes no new requests; those under way go on.
    pub(crate) fn stop(&self) {
        if let Ranks::Processes(_, Some(nodes)) = &self.ranks {
            nodes.stopping();
        }
        self.handle.stop();
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
            Ranks::Processes(processes, nodes) => {
                nodes.iter().for_each(NodeLinks::end);
                processes.wait();
            }
        }
        drop((ends, trace));
    }
}

/// Runs the only rank on its own thread.
fn on_a_thread(report: Reports) -> Result<(Members, Ranks), LaunchError> {
    let (ours, theirs) = link::in_memory();
    let setup = RankSetup {
        link: theirs,
        identity: Identity { build_id: BUILD_ID.into(), world: 1, rank: 0 },
        epoch: EPOCH,
        memory: None,
        weights: None,
        data_host: "127.0.0.1".into(),
        data_ports: None,
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
fn as_processes(
    plan: &Plan,
    others: Option<OtherNodes>,
    report: Reports,
    ends: &mut RankEnds,
) -> Result<(Members, Ranks), LaunchError> {
    let world = plan.partition.world();
    let binary = plan.config.worker_binary.as_ref().ok_or_else(|| {
        LaunchError::usage(
            format!("{world} ranks are {world} processes, and this program has not named one to run them"),
            "set ClusterConfig::worker_binary to the path of a nanoinfer-launch of the same build",
        )
    })?;
    let here = HostRanks::new(world, binary, &plan.config.log, &report)?;
    let processes = here.processes();
    let ranks = plan.hosts.iter().map(|(_, ranks)| ranks.clone()).collect();
    let by_memory = matches!(plan.load.comm, CommKind::Shm | CommKind::Tcp) && plan.load.hosts.iter().any(|&of| of > 1);
    let lender = Lender::new(plan.load.clone(), plan.model.files);
    let mut all = AllRanks::new(here, ranks, by_memory, others, report, lender)?;
    let nodes = all.links();
    let first: Vec<Lost> = (0..world).map(|rank| Lost { rank, is_corrupt: false }).collect();
    let links = all.start(0, &first, &|| false).map_err(|error| cause(ends).unwrap_or(error))?;
    let survives = plan.config.on_rank_loss == OnRankLoss::Restart && plan.config.rank_restarts.most > 0;
    let source = survives.then(|| Box::new(all) as Box<dyn RankSource>);
    Ok(((links, source), Ranks::Processes(processes, nodes)))
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
