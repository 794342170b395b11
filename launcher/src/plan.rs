//! Everything that is decided before the first process starts: who holds what, over which link, in how much memory.
//!
//! `--plan` prints it and stops; a start carries it out. Reads no weights.

mod data_link;
mod device;
mod host;
mod table;
mod topology;

use std::{ops::Range, sync::Arc, time::SystemTime};

use nanoinfer_coordinator::{
    config::{EngineConfig, ModelCard},
    kv_budget::{KvBudget, RankRoom},
    text::ModelText,
};
use nanoinfer_shared::{
    ModelShape, Partition,
    comm::CommDType,
    protocol::{CommKind, Device, LoadOrder, OnHost, TraceOrder},
};
use nanoinfer_worker::{Level, RankMemory, cuda, rank_memory};

use self::device::Chosen;
pub use self::host::Host;
use crate::{
    build::BUILD_ID,
    config::{Balance, ClusterConfig, CommChoice, DeviceChoice, Switch},
    error::LaunchError,
    model::{self, ResolvedModel},
    size::ByteSize,
};

/// A cluster on paper.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was asked for.
    pub(crate) config: ClusterConfig,
    /// Where the ranks will run: this host first, each with its ranks.
    pub(crate) hosts: Vec<(Host, Range<usize>)>,
    /// The model, with its files. Its vocabulary ends with the tokenizer's last token: rows that pad the matrices are not held by
    /// anybody, and so can be neither drawn nor named.
    pub model: ResolvedModel,
    /// What the model reads and writes.
    pub(crate) text: Arc<ModelText>,
    /// Its sizes as it is served: a sequence may be left fewer positions than it has.
    pub shape: ModelShape,
    /// Who holds what.
    pub partition: Partition,
    /// What every rank is told; what it has of its host is the first rank's.
    pub load: LoadOrder,
    /// What each has of its host, in rank order.
    pub on_hosts: Vec<OnHost>,
    /// Estimated bytes of each rank, in rank order.
    pub memory: Vec<RankMemory>,
    /// KV blocks that the estimate assumes; the pool is sized for good when the weights are loaded.
    pub kv_blocks: usize,
    kv: KvBudget,
    /// The memories that the ranks share.
    memories: Vec<SharedMemory>,
    /// What was chosen here, and why, a line each.
    notes: Vec<String>,
}

/// A memory, and the ranks in it.
#[derive(Clone, Debug)]
struct SharedMemory {
    name: String,
    /// None where the system does not say.
    free_bytes: Option<u64>,
    ranks: Vec<usize>,
}

impl Plan {
    /// A plan for this host alone.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn here(config: &ClusterConfig) -> Result<Self, LaunchError> {
        Self::new(config, || Ok(vec![Self::this_host(config)]))
    }

    /// What ranks of `config` can have of this host.
    pub(crate) fn this_host(config: &ClusterConfig) -> Host {
        Host::of_this_process(&config.device, config.nproc, cuda::find)
    }

    /// The same, with what it is measured by, where shares follow that.
    pub(crate) fn this_of_several(config: &ClusterConfig) -> Host {
        let host = Self::this_host(config);
        if config.balance == Balance::Auto { host.measured() } else { host }
    }

    /// Resolves the model and decides everything, for the hosts that come meanwhile: this one first.
    ///
    /// # Errors
    /// When there is no such model, or it cannot be served as asked.
    pub fn new(
        config: &ClusterConfig,
        hosts: impl FnOnce() -> Result<Vec<Host>, LaunchError>,
    ) -> Result<Self, LaunchError> {
        let mut model = model::resolve(config.model.as_deref(), config.version(), &config.caches)?;
        let mut text = ModelText::load(&model.folder, &model.shape)?;
        text.calculator = text.calculator.filter(|_| config.calculator);
        let text = Arc::new(text);
        model.shape.vocab_size = text.tokenizer.vocab_size();
        model.shape.keep_known_ends();
        Partition::new(&model.shape, config.nproc)?;
        let hosts = dealt(hosts()?, config.nproc)?;
        let chosen = device::choose(config, &model.shape, &hosts)?;
        let may_be_cpu = config.device == DeviceChoice::Auto && !chosen.gpus.is_empty();
        let plan = Self::on(chosen, config, hosts.clone(), model.clone(), text.clone());
        if !may_be_cpu {
            return plan;
        }
        let too_little = match &plan {
            Ok(plan) => plan.check_memory().err(),
            Err(LaunchError::KvMemory(error)) => Some(LaunchError::KvMemory(error.clone())),
            Err(_) => None,
        };
        match too_little {
            Some(error) => {
                let on_cpu = device::on_cpu(config, &model.shape, &hosts, Some(&error))?;
                Self::on(on_cpu, config, hosts, model, text)
            }
            None => plan,
        }
    }

    /// Decides the rest, once it is known what to compute on.
    fn on(
        chosen: Chosen,
        config: &ClusterConfig,
        hosts: Vec<(Host, Range<usize>)>,
        mut model: ResolvedModel,
        text: Arc<ModelText>,
    ) -> Result<Self, LaunchError> {
        let world = config.nproc;
        model.shape.logit_softcap = softcap(&model, config.logit_softcap)?;
        let mut shape = served(&model, config.max_model_len)?;
        let (weights, balance_note) = weights(config.balance, &chosen, &hosts)?;
        let partition = Partition::weighted(&model.shape, &weights)?;
        let by_rank =
            hosts.iter().enumerate().flat_map(|(host, (_, ranks))| ranks.clone().map(move |rank| (host, rank)));
        let devices: Vec<_> = by_rank.map(|(host, rank)| (host, chosen.device(rank))).collect();
        let (comm, link_note) = data_link::choose(config.comm, hosts.len(), &devices, cuda::nccl_version)?;
        if comm == CommKind::Nccl && config.comm_dtype != CommDType::F32 {
            let problem = format!("--comm-dtype {} is for sums on CPUs, and NCCL adds up f32", config.comm_dtype);
            return Err(LaunchError::usage(problem, "leave it out, or --comm shm or tcp"));
        }
        if config.max_batched_tokens < config.max_seqs {
            let (tokens, seqs) = (config.max_batched_tokens, config.max_seqs);
            let problem = format!("--max-batched-tokens {tokens} is less than --max-seqs {seqs}");
            return Err(LaunchError::usage(problem, "every sequence takes at least one token of a step"));
        }
        let mut on_hosts: Vec<OnHost> =
            (0..world).map(|rank| OnHost { device: chosen.device(rank), ..OnHost::cpu(1) }).collect();
        hosts[0].1.clone().for_each(|rank| on_hosts[rank].files = Some(model.files));
        let mut notes = vec![Some(chosen.to_string())];
        for (topology, ranks) in shared(&hosts, |host| (&host.machine, &host.topology)) {
            let threads = config.threads.unwrap_or_else(|| (topology.1.threads() / ranks.len()).max(1));
            let (cores, why) = topology.1.place(&ranks, threads);
            notes.push(chosen.gpus.is_empty().then_some(why));
            for (rank, cores) in ranks.into_iter().zip(cores) {
                (on_hosts[rank].threads, on_hosts[rank].cores) = (threads, cores);
            }
        }
        let name = |host: &'_ Host| if hosts.len() == 1 { "this CPU".to_owned() } else { host.name.clone() };
        let names: Vec<_> = hosts.iter().map(|(host, _)| name(host)).collect();
        let cpus: Vec<_> = names.iter().map(String::as_str).zip(hosts.iter().map(|(host, _)| &host.cpu)).collect();
        let level = chosen.gpus.is_empty().then(|| Level::for_all(config.isa.as_deref(), &cpus)).transpose()?;
        notes.push(level.as_ref().map(Level::to_string));
        notes.push(link_note.map(|why| format!("partial sums go through the host's memory: {why}")));
        notes.push(balance_note);
        let memories = shared_memories(&chosen, &hosts);
        let load = LoadOrder {
            shape: model.shape.clone(),
            partition: partition.clone(),
            weights: model.weights.clone(),
            fingerprint: model.fingerprint,
            dtype: chosen.dtype,
            kv_dtype: chosen.kv_dtype,
            isa: level.as_ref().map(|level| level.name().into()),
            comm,
            comm_dtype: config.comm_dtype,
            link_encryption: config.link_encryption == Switch::On,
            // By TCP where that was asked for: each for itself.
            hosts: match config.comm {
                CommChoice::Tcp => vec![1; world],
                _ => hosts.iter().map(|(_, ranks)| ranks.len()).collect(),
            },
            max_batched_tokens: config.max_batched_tokens,
            max_seqs: config.max_seqs,
            trace: config.trace.clone().map(|path| TraceOrder { path, max_bytes: config.trace_limit.0 }),
            on_host: on_hosts[0].clone(),
        };
        let estimate = |rank, kv_blocks| rank_memory(&load, &partition, rank, kv_blocks);
        let kv = KvBudget { kv_memory: config.kv_memory.map(|size| size.0) };
        let mut free_after = vec![u64::MAX; world];
        for memory in &memories {
            let sum = |of: fn(RankMemory) -> u64| memory.ranks.iter().map(|&rank| of(estimate(rank, 0))).sum::<u64>();
            let weights = sum(|memory| memory.weights);
            // Of a GPU all that is no pool, of a host what is loaded. Where a GPU has not that much, the plan warns of it below.
            let taken = if chosen.gpus.is_empty() { weights } else { sum(|memory| memory.total()) };
            let left = |free: u64| free.checked_sub(taken).unwrap_or(free.saturating_sub(weights));
            let free = memory.free_bytes.map_or(u64::MAX, left);
            memory.ranks.iter().for_each(|&rank| free_after[rank] = free);
        }
        let sharing = ranks_per_memory(&memories, world);
        let room = |rank| RankRoom {
            block_bytes: estimate(rank, 1).kv,
            free_bytes: free_after[rank],
            is_gpu: !chosen.gpus.is_empty(),
            ranks_per_memory: sharing[rank],
        };
        let rooms: Vec<RankRoom> = (0..world).map(room).collect();
        let longest = kv.longest(&rooms);
        if config.max_model_len.is_none() && (LEAST_CONTEXT..shape.context).contains(&longest) {
            let whole = std::mem::replace(&mut shape.context, longest);
            notes.push(Some(format!(
                "texts of up to {longest} tokens, of the {whole} of the model: what memory allows; --max-model-len and --kv-memory change it"
            )));
        }
        let kv_blocks = kv.blocks(&shape, config.max_seqs, &rooms)?;
        Ok(Self {
            memory: (0..world).map(|rank| estimate(rank, kv_blocks)).collect(),
            config: config.clone(),
            hosts,
            model,
            text,
            shape,
            partition,
            load,
            on_hosts,
            kv_blocks,
            kv,
            memories,
            notes: notes.into_iter().flatten().collect(),
        })
    }

    /// Checks that the hosts and their GPUs have the memory that the ranks will take.
    ///
    /// # Errors
    /// With both numbers, when one has not.
    pub(crate) fn check_memory(&self) -> Result<(), LaunchError> {
        for SharedMemory { name, free_bytes, ranks } in &self.memories {
            let needed: u64 = ranks.iter().map(|&rank| self.memory[rank].total()).sum();
            if let Some(free_bytes) = free_bytes
                && needed > *free_bytes
            {
                let less =
                    if self.on_gpus() { "halves f32's weights" } else { "halves the weights, int8 quarters them" };
                return Err(LaunchError::usage(
                    format!("the ranks need {}, and {name} has {} free", ByteSize(needed), ByteSize(*free_bytes)),
                    format!("--kv-memory, --max-seqs and --max-batched-tokens take less; --dtype bf16 {less}"),
                ));
            }
        }
        Ok(())
    }

    /// Whether the ranks compute on GPUs.
    pub fn on_gpus(&self) -> bool {
        self.load.on_host.device != Device::Cpu
    }

    /// What was found out beside it, for whoever reads it.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// What the coordinator is told.
    pub(crate) fn engine_config(&self) -> EngineConfig {
        EngineConfig {
            load: self.load.clone(),
            shape: self.shape.clone(),
            on_hosts: self.on_hosts.clone(),
            kv: self.kv,
            ranks_per_memory: ranks_per_memory(&self.memories, self.partition.world()),
            max_queue: self.config.max_queue,
            max_queue_tokens: self.config.max_queue_tokens,
            prefix_cache: self.config.prefix_cache,
            restarts: self.config.rank_restarts,
        }
    }

    /// What clients are told, from now on.
    pub(crate) fn model_card(&self) -> ModelCard {
        ModelCard {
            name: self.model.name.clone(),
            served_name: self.config.served_name.clone(),
            shape: self.shape.clone(),
            parameters: self.model.shape.parameters(),
            dtype: self.load.dtype,
            partition: self.partition.clone(),
            weight_bytes: self.memory.iter().map(|memory| memory.weights).collect(),
            digest: format!("{:016x}", self.model.fingerprint),
            started: SystemTime::now(),
            build_id: BUILD_ID.into(),
        }
    }
}

/// Where not even so many positions fit, the model does not.
const LEAST_CONTEXT: usize = 512;

/// The sizes of a model where a sequence may use so many of its positions.
fn served(model: &ResolvedModel, positions: Option<usize>) -> Result<ModelShape, LaunchError> {
    let most = model.shape.context;
    let context = positions.unwrap_or(most);
    if context > most {
        return Err(LaunchError::usage(
            format!("--max-model-len {context} is more than the {most} positions of {}", model.name),
            format!("--max-model-len {most} or less; the model was trained for no more"),
        ));
    }
    Ok(ModelShape { context, ..model.shape.clone() })
}

/// Where a model caps its logits, by what was said or by itself.
fn softcap(model: &ResolvedModel, said: Option<f32>) -> Result<Option<f32>, LaunchError> {
    let own = model.shape.logit_softcap;
    match said {
        Some(_) if own.is_none() => Err(LaunchError::usage(
            format!("--logit-softcap is said, and {} does not cap its logits", model.name),
            "leave it out; it is for models of nanochat",
        )),
        _ => Ok(said.or(own)),
    }
}

/// Whether so many hosts have a rank each.
///
/// # Errors
/// When ranks are fewer.
pub(crate) fn check_hosts(count: usize, world: usize) -> Result<(), LaunchError> {
    if world >= count {
        return Ok(());
    }
    Err(LaunchError::usage(
        format!("--nproc {world} is less than the {count} hosts"),
        format!("--nproc {count} or more: ranks of all hosts are counted together"),
    ))
}

/// Hosts with the ranks of each: as even as it goes, one after the other.
fn dealt(hosts: Vec<Host>, world: usize) -> Result<Vec<(Host, Range<usize>)>, LaunchError> {
    let count = hosts.len();
    check_hosts(count, world)?;
    let first = |host: usize| host * (world / count) + host.min(world % count);
    Ok(hosts.into_iter().enumerate().map(|(i, host)| (host, first(i)..first(i + 1))).collect())
}

/// What ranks are dealt in proportion to, and the words for it: the same of each, or what of its host's speed falls to it.
fn weights(
    balance: Balance,
    chosen: &Chosen,
    hosts: &[(Host, Range<usize>)],
) -> Result<(Vec<f64>, Option<String>), LaunchError> {
    let even = || hosts.iter().flat_map(|(_, ranks)| ranks.clone().map(|_| 1.0)).collect();
    if balance == Balance::Even || hosts.len() == 1 {
        return Ok((even(), None));
    }
    if !chosen.gpus.is_empty() {
        return Err(LaunchError::usage(
            "--balance auto measures processors, and the ranks are on GPUs",
            "leave it out",
        ));
    }
    let (mut weights, mut told) = (Vec::new(), Vec::new());
    for (host, ranks) in hosts {
        let speed = host.read_bytes_per_s.ok_or_else(|| {
            LaunchError::usage(format!("{} has not measured its speed", host.name), "--balance auto is for all nodes")
        })?;
        weights.extend(ranks.clone().map(|_| speed / ranks.len() as f64));
        told.push(format!("{} {:.1}", host.name, speed / 1e9));
    }
    Ok((weights, Some(format!("shares by what hosts read, in GB/s: {}", told.join(", ")))))
}

/// What hosts have in common that have it, and their ranks.
fn shared<'a, T: PartialEq>(hosts: &'a [(Host, Range<usize>)], what: impl Fn(&'a Host) -> T) -> Vec<(T, Vec<usize>)> {
    grouped(hosts.iter().flat_map(|(host, ranks)| ranks.clone().map(move |rank| (host, rank))), what)
}

/// Ranks by what they have in common, in the order of the first of each.
fn grouped<O: Copy, T: PartialEq>(
    ranks: impl Iterator<Item = (O, usize)>,
    what: impl Fn(O) -> T,
) -> Vec<(T, Vec<usize>)> {
    let mut groups: Vec<(T, Vec<usize>)> = Vec::new();
    for (of, rank) in ranks {
        let own = what(of);
        match groups.iter_mut().find(|(other, _)| *other == own) {
            Some((_, all)) => all.push(rank),
            None => groups.push((own, vec![rank])),
        }
    }
    groups
}

/// Which ranks share which memory.
fn shared_memories(chosen: &Chosen, hosts: &[(Host, Range<usize>)]) -> Vec<SharedMemory> {
    let host_of = |rank: usize| {
        hosts.iter().find(|(_, ranks)| ranks.contains(&rank)).map(|(host, _)| host).expect("every rank has a host")
    };
    let mut memories = Vec::new();
    for (machine, ranks) in shared(hosts, |host| &host.machine) {
        let on_machine = hosts.iter().filter(|(host, _)| host.machine == *machine);
        let host = host_of(ranks[0]);
        let whose = if hosts.len() == 1 { "this host".to_owned() } else { host.name.clone() };
        if chosen.gpus.is_empty() {
            let free_bytes = on_machine.filter_map(|(host, _)| host.free_bytes).min();
            memories.push(SharedMemory { name: whose, free_bytes, ranks });
            continue;
        }
        let of = if hosts.len() == 1 { String::new() } else { format!(" of {whose}") };
        let gpus = ranks.iter().map(|&rank| (&chosen.gpus[rank], rank));
        for (ordinal, ranks) in grouped(gpus, |gpu| gpu.ordinal) {
            let gpu = &chosen.gpus[ranks[0]];
            let name = format!("GPU {ordinal} ({}){of}", gpu.name);
            memories.push(SharedMemory { name, free_bytes: Some(gpu.free_bytes), ranks });
        }
    }
    memories
}

/// For each rank how many share its memory.
fn ranks_per_memory(memories: &[SharedMemory], world: usize) -> Vec<usize> {
    let of = |rank| memories.iter().find(|memory| memory.ranks.contains(&rank)).map_or(1, |memory| memory.ranks.len());
    (0..world).map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{
        config::CommChoice,
        model::{Caches, HubAccess},
    };

    fn config(root: &Path, nproc: usize) -> ClusterConfig {
        let hub = HubAccess::offline(root.join("hub"));
        ClusterConfig { nproc, ..ClusterConfig::new(Caches { demo: vec![root.join("demo")], hub }) }
    }

    #[test]
    fn the_table_has_a_line_a_rank_with_its_ranges() {
        let root = tempfile::tempdir().unwrap();
        let plan = Plan::here(&config(root.path(), 3)).unwrap();
        let text = plan.to_string();
        assert!(text.starts_with("nano-chat: 6 layers, 8 heads, width 256, vocabulary 4096"), "{text}");
        assert!(text.contains("data link shared memory"), "{text}");
        let level = plan.load.isa.clone().unwrap();
        assert!(text.contains(&format!("\ninstruction set {level}")), "{text}");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.iter().any(|line| line.starts_with(&["0", "0..3", "0..384", "0..1408"])), "{text}");
        assert!(lines.iter().any(|line| line.starts_with(&["2", "6..8", "704..1024", "2752..4096"])), "{text}");
        let sum: u64 = plan.memory.iter().map(RankMemory::total).sum();
        assert!(text.ends_with(&format!("all ranks: {}", ByteSize(sum))), "{text}");
    }

    #[test]
    fn what_cannot_be_served_is_refused_before_anything_starts() {
        let root = tempfile::tempdir().unwrap();
        let base = config(root.path(), 2);
        let code = |config: ClusterConfig, hosts: usize| {
            let all = vec![Plan::this_host(&config); hosts];
            Plan::new(&config, || Ok(all)).unwrap_err().exit_code()
        };
        assert_eq!(code(ClusterConfig { nproc: 9, ..base.clone() }, 1), 2);
        assert_eq!(code(ClusterConfig { max_seqs: 600, ..base.clone() }, 1), 2);
        assert_eq!(code(ClusterConfig { comm: CommChoice::Shm, ..base.clone() }, 2), 2);
        assert_eq!(code(base.clone(), 3), 2, "two ranks on three hosts");
        let tiny = ClusterConfig { kv_memory: Some(ByteSize(1000)), ..base };
        let message = Plan::here(&tiny).unwrap_err().to_string();
        assert!(message.contains("256 tokens") && message.contains("hint: --kv-memory "), "{message}");
    }

    #[test]
    fn a_shorter_sequence_needs_a_smaller_pool_and_no_more_is_told() {
        let root = tempfile::tempdir().unwrap();
        let of = |max_model_len, kv_memory: u64| {
            let kv_memory = Some(ByteSize(kv_memory));
            Plan::here(&ClusterConfig { max_model_len, kv_memory, ..config(root.path(), 1) })
        };
        let whole = of(None, 1 << 30).unwrap();
        let block_bytes = whole.memory[0].kv / whole.kv_blocks as u64;
        assert!(of(None, 2 * block_bytes).unwrap_err().to_string().contains("a sequence of 256 tokens"));
        let plan = of(Some(20), 2 * block_bytes).unwrap();
        assert_eq!((plan.kv_blocks, plan.shape.context, plan.load.shape.context), (2, 20, 256));
        assert!(plan.to_string().contains("20 of 256 positions, "), "{plan}");
        let card = plan.model_card();
        assert_eq!((card.shape.context, card.parameters), (20, whole.model.shape.parameters()));
        assert_eq!(plan.engine_config().shape.context, 20);
        assert!(of(Some(20), block_bytes).unwrap_err().to_string().contains("a sequence of 20 tokens"));
        let error = of(Some(257), 1 << 30).unwrap_err();
        assert!(
            error.exit_code() == 2 && error.to_string().contains("--max-model-len 257 is more than the 256 positions")
        );
        assert!(error.to_string().contains("hint: --max-model-len 256 or less"), "{error}");
        assert_eq!(of(Some(256), 1 << 30).unwrap().to_string(), whole.to_string());
    }

    #[test]
    fn two_nodes_of_one_machine_divide_its_cores_and_memory_and_two_machines_do_not() {
        let root = tempfile::tempdir().unwrap();
        let config = ClusterConfig { device: DeviceChoice::Cpu, ..config(root.path(), 3) };
        let host = Plan::this_host(&config);
        let other = Host { machine: "another".into(), name: "other".into(), free_bytes: Some(1), ..host.clone() };
        let plan = |hosts: Vec<Host>| Plan::new(&config, || Ok(hosts)).unwrap();
        let threads = |plan: &Plan| plan.on_hosts.iter().map(|on_host| on_host.threads).collect::<Vec<_>>();
        let all = host.topology.threads();
        let one = plan(vec![host.clone(), host.clone()]);
        assert_eq!(threads(&one), [(all / 3).max(1); 3]);
        assert_eq!((one.hosts[0].1.clone(), one.hosts[1].1.clone()), (0..2, 2..3));
        assert_eq!(one.engine_config().ranks_per_memory, [3; 3]);
        assert_eq!(one.load.comm, CommKind::Tcp);
        let two = ClusterConfig { kv_memory: Some(ByteSize(64 << 20)), ..config.clone() };
        let two = Plan::new(&two, || Ok(vec![host, other])).unwrap();
        assert_eq!(threads(&two), [(all / 2).max(1), (all / 2).max(1), all]);
        assert_eq!(two.engine_config().ranks_per_memory, [2, 2, 1]);
        // Only the coordinator's host has its files.
        assert_eq!([0, 1, 2].map(|rank| two.on_hosts[rank].files.is_some()), [true, true, false]);
        assert!(two.check_memory().unwrap_err().to_string().contains("other has 1 B"), "{two}");
    }

    #[test]
    fn shares_follow_what_hosts_were_measured_to_read() {
        let root = tempfile::tempdir().unwrap();
        let config = ClusterConfig { device: DeviceChoice::Cpu, balance: Balance::Auto, ..config(root.path(), 3) };
        let host = Host { read_bytes_per_s: Some(30e9), ..Plan::this_host(&config) };
        let slow = Host { read_bytes_per_s: Some(5e9), name: "slow".into(), ..host.clone() };
        let plan = Plan::new(&config, || Ok(vec![host.clone(), slow.clone()])).unwrap();
        let heads =
            |plan: &Plan| plan.load.partition.shares().iter().map(|share| share.heads.len()).collect::<Vec<_>>();
        // Of 8 heads 15 to 15 to 5: 3.4, 3.4 and 1.1.
        assert_eq!(heads(&plan), [4, 3, 1]);
        assert!(plan.to_string().contains(", slow 5.0"), "{plan}");
        let unmeasured = Host { read_bytes_per_s: None, ..slow.clone() };
        assert_eq!(Plan::new(&config, || Ok(vec![host.clone(), unmeasured])).unwrap_err().exit_code(), 2);
        let even = ClusterConfig { balance: Balance::Even, ..config };
        assert_eq!(heads(&Plan::new(&even, || Ok(vec![host, slow])).unwrap()), [3, 3, 2]);
    }

    /// A golden checkpoint with its tokenizer, flat.
    fn nanochat(folder: &Path, name: &str) -> String {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/nanochat");
        fs::create_dir_all(folder).unwrap();
        let files = fs::read_dir(golden.join(name)).unwrap().map(|entry| entry.unwrap().path());
        for file in files.chain([golden.join("tokenizer/tokenizer.pkl")]) {
            fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
        }
        folder.display().to_string()
    }

    #[test]
    fn a_cap_that_no_tensor_tells_can_be_said() {
        let root = tempfile::tempdir().unwrap();
        let of = |model: &str, logit_softcap| {
            let model = Some(nanochat(&root.path().join(model), model));
            Plan::here(&ClusterConfig { model, logit_softcap, ..config(root.path(), 1) })
        };
        let caps = |plan: Plan| [plan.shape.logit_softcap, plan.load.shape.logit_softcap];
        assert_eq!(caps(of("C-softcap20", None).unwrap()), [Some(15.0); 2]);
        assert_eq!(caps(of("C-softcap20", Some(20.0)).unwrap()), [Some(20.0); 2]);
        let demo = Plan::here(&ClusterConfig { logit_softcap: Some(20.0), ..config(root.path(), 1) });
        assert!(demo.unwrap_err().to_string().contains("does not cap its logits"));
    }

    #[test]
    fn a_context_beyond_memory_is_cut_and_said_and_a_wish_is_not() {
        let root = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama-9-3").display().to_string();
        let of = |max_model_len, kv_memory: Option<u64>| {
            let (model, kv_memory) = (Some(model.clone()), kv_memory.map(ByteSize));
            Plan::here(&ClusterConfig { model, max_model_len, kv_memory, ..config(root.path(), 2) })
        };
        let whole = of(None, Some(1 << 30)).unwrap();
        assert_eq!(whole.shape.context, 8192);
        let block_bytes = whole.memory[0].kv / whole.kv_blocks as u64;
        let plan = of(None, Some(64 * block_bytes)).unwrap();
        assert_eq!((plan.shape.context, plan.kv_blocks, plan.model_card().shape.context), (1024, 64, 1024));
        assert!(plan.to_string().contains("texts of up to 1024 tokens, of the 8192 of the model"), "{plan}");
        let error = of(Some(8192), Some(64 * block_bytes)).unwrap_err().to_string();
        assert!(error.contains("a sequence of 8192 tokens"), "{error}");
        assert!(of(None, Some(8 * block_bytes)).is_err(), "so little is no use");
    }

    #[test]
    fn more_memory_than_there_is_is_refused_and_told() {
        let root = tempfile::tempdir().unwrap();
        let greedy = ClusterConfig { kv_memory: Some(ByteSize(1 << 49)), ..config(root.path(), 2) };
        let plan = Plan::here(&greedy).unwrap();
        let error = plan.check_memory().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = plan.to_string();
        assert!(!text.contains("the ranks need"), "a start says it as its error: {text}");
        Plan::here(&config(root.path(), 2)).unwrap().check_memory().unwrap();
    }
}
