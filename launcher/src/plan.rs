//! Everything that is decided before the first process starts: who holds what, over which link, in how much memory.
//!
//! `--plan` prints it and stops; a start carries it out. Reads no weights.

mod data_link;
mod device;
mod placement;
mod table;
mod topology;

use std::{sync::Arc, time::SystemTime};

use nanoinfer_coordinator::{
    config::{EngineConfig, ModelCard},
    kv_budget::{KvBudget, RankRoom},
    text::ModelText,
};
use nanoinfer_shared::{
    ModelShape, Partition,
    protocol::{Cores, Device, LoadOrder},
};
use nanoinfer_worker::{Level, RankMemory, cuda, free_bytes, rank_memory};

pub use self::placement::Placement;
use self::{device::Chosen, topology::Topology};
use crate::{
    build::BUILD_ID,
    config::{ClusterConfig, DeviceChoice},
    error::LaunchError,
    model::{self, ResolvedModel},
    size::ByteSize,
};

/// A cluster on paper.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was asked for.
    pub(crate) config: ClusterConfig,
    /// Where the ranks will run.
    pub(crate) placement: Placement,
    /// The model, with its files. Its vocabulary ends with the tokenizer's last token: rows that pad the matrices are not held by
    /// anybody, and so can be neither drawn nor named.
    pub model: ResolvedModel,
    /// What the model reads and writes.
    pub(crate) text: Arc<ModelText>,
    /// Its sizes as it is served: a sequence may be left fewer positions than it has.
    pub shape: ModelShape,
    /// Who holds what.
    pub partition: Partition,
    /// What every rank is told.
    pub load: LoadOrder,
    /// Estimated bytes of each rank, in rank order.
    pub memory: Vec<RankMemory>,
    /// KV blocks that the estimate assumes; the pool is sized for good when the weights are loaded.
    pub kv_blocks: usize,
    kv: KvBudget,
    /// The memories that the ranks share, as far as they are known here.
    memories: Vec<SharedMemory>,
    /// What was chosen here, and why, a line each.
    notes: Vec<String>,
}

/// A memory, and the ranks in it.
#[derive(Clone, Debug)]
struct SharedMemory {
    name: String,
    free_bytes: u64,
    ranks: Vec<usize>,
}

impl Plan {
    /// Resolves the model and decides everything.
    ///
    /// # Errors
    /// When there is no such model, or it cannot be served as asked.
    pub fn new(config: &ClusterConfig, placement: Placement) -> Result<Self, LaunchError> {
        let mut model = model::resolve(config.model.as_deref(), config.version(), &config.caches)?;
        let mut text = ModelText::load(&model.folder, &model.shape)?;
        text.calculator = text.calculator.filter(|_| config.calculator);
        let text = Arc::new(text);
        model.shape.vocab_size = text.tokenizer.vocab_size();
        model.shape.keep_known_ends();
        Partition::new(&model.shape, config.nproc)?;
        let chosen = device::choose(config, &model.shape, placement, cuda::find)?;
        let may_be_cpu = config.device == DeviceChoice::Auto && chosen.device != Device::Cpu;
        let plan = Self::on(chosen, config, placement, model.clone(), text.clone());
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
                Self::on(device::on_cpu(config, &model.shape, Some(&error))?, config, placement, model, text)
            }
            None => plan,
        }
    }

    /// Decides the rest, once it is known what to compute on.
    fn on(
        chosen: Chosen,
        config: &ClusterConfig,
        placement: Placement,
        mut model: ResolvedModel,
        text: Arc<ModelText>,
    ) -> Result<Self, LaunchError> {
        let world = config.nproc;
        model.shape.logit_softcap = softcap(&model, config.logit_softcap)?;
        let mut shape = served(&model, config.max_model_len)?;
        let partition = Partition::new(&model.shape, world)?;
        let (comm, link_note) = data_link::choose(config.comm, world, placement, &chosen.device, cuda::nccl_version)?;
        if config.max_batched_tokens < config.max_seqs {
            let (tokens, seqs) = (config.max_batched_tokens, config.max_seqs);
            let problem = format!("--max-batched-tokens {tokens} is less than --max-seqs {seqs}");
            return Err(LaunchError::usage(problem, "every sequence takes at least one token of a step"));
        }
        // Ranks elsewhere know their own cores.
        let (threads, cores, why_cores) = match placement {
            Placement::Here => {
                let topology = Topology::of_host();
                let threads = config.threads.unwrap_or_else(|| (topology.threads() / world).max(1));
                let (cores, why) = topology.place(world, threads);
                (Some(threads), cores, (chosen.device == Device::Cpu).then_some(why))
            }
            Placement::Elsewhere => (config.threads, Cores::Shared, None),
        };
        // Other hosts' CPUs are known to their ranks.
        let level = match placement {
            Placement::Here if chosen.device == Device::Cpu => Some(Level::choose(config.isa.as_deref())?),
            _ => None,
        };
        let mut notes = vec![
            Some(chosen.to_string()),
            level.map(|level| level.to_string()),
            why_cores,
            link_note.map(|why| format!("partial sums go through the host's memory: {why}")),
        ];
        let memories = shared_memories(&chosen, world, placement);
        let load = LoadOrder {
            shape: model.shape.clone(),
            weights: model.weights.clone(),
            fingerprint: model.fingerprint,
            files: (placement == Placement::Here).then_some(model.files),
            device: chosen.device,
            dtype: chosen.dtype,
            kv_dtype: chosen.kv_dtype,
            threads,
            ranks_on_host: world,
            isa: level.map(|level| level.name().into()).or(config.isa.clone()),
            comm,
            cores,
            max_batched_tokens: config.max_batched_tokens,
            max_seqs: config.max_seqs,
            trace: config.trace.clone(),
        };
        let estimate = |rank, kv_blocks| rank_memory(&load, &partition, rank, kv_blocks);
        let kv = KvBudget {
            kv_memory: config.kv_memory.map(|size| size.0),
            ranks_per_memory: memories.iter().map(|memory| memory.ranks.len()).max().unwrap_or(1),
        };
        // What other hosts have free is found out when their ranks have loaded.
        let mut free_after = vec![u64::MAX; world];
        for memory in &memories {
            let weights: u64 = memory.ranks.iter().map(|&rank| estimate(rank, 0).weights).sum();
            memory.ranks.iter().for_each(|&rank| free_after[rank] = memory.free_bytes.saturating_sub(weights));
        }
        let room = |rank| RankRoom { block_bytes: estimate(rank, 1).kv, free_bytes: free_after[rank] };
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
            placement,
            model,
            text,
            shape,
            partition,
            load,
            kv_blocks,
            kv,
            memories,
            notes: notes.into_iter().flatten().collect(),
        })
    }

    /// Checks that this host and its GPUs have the memory that the ranks will take.
    ///
    /// # Errors
    /// With both numbers, when one has not.
    pub(crate) fn check_memory(&self) -> Result<(), LaunchError> {
        for SharedMemory { name, free_bytes, ranks } in &self.memories {
            let needed: u64 = ranks.iter().map(|&rank| self.memory[rank].total()).sum();
            if needed > *free_bytes {
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
        self.load.device != Device::Cpu
    }

    /// What the coordinator is told, where `ranks_on_host` share the host of each.
    pub(crate) fn engine_config(&self, ranks_on_host: Vec<usize>) -> EngineConfig {
        EngineConfig {
            load: self.load.clone(),
            shape: self.shape.clone(),
            partition: self.partition.clone(),
            ranks_on_host,
            kv: self.kv,
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

/// Which ranks share which memory; none of ranks elsewhere.
fn shared_memories(chosen: &Chosen, world: usize, placement: Placement) -> Vec<SharedMemory> {
    match placement {
        Placement::Elsewhere => Vec::new(),
        Placement::Here if chosen.gpus.is_empty() => {
            let host = |free_bytes| SharedMemory { name: "this host".into(), free_bytes, ranks: (0..world).collect() };
            free_bytes().map(host).into_iter().collect()
        }
        Placement::Here => {
            let count = chosen.gpus.len();
            let of = |(i, gpu): (usize, &cuda::GpuInfo)| SharedMemory {
                name: format!("GPU {} ({})", gpu.ordinal, gpu.name),
                free_bytes: gpu.free_bytes,
                ranks: (i..world).step_by(count).collect(),
            };
            chosen.gpus.iter().enumerate().map(of).collect()
        }
    }
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
        let plan = Plan::new(&config(root.path(), 3), Placement::Here).unwrap();
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
        let code = |config: ClusterConfig, placement| Plan::new(&config, placement).unwrap_err().exit_code();
        assert_eq!(code(ClusterConfig { nproc: 9, ..base.clone() }, Placement::Here), 2);
        assert_eq!(code(ClusterConfig { max_seqs: 600, ..base.clone() }, Placement::Here), 2);
        assert_eq!(code(ClusterConfig { comm: CommChoice::Shm, ..base.clone() }, Placement::Elsewhere), 2);
        let tiny = ClusterConfig { kv_memory: Some(ByteSize(1000)), ..base };
        let message = Plan::new(&tiny, Placement::Here).unwrap_err().to_string();
        assert!(message.contains("256 tokens") && message.contains("hint: --kv-memory "), "{message}");
    }

    #[test]
    fn a_shorter_sequence_needs_a_smaller_pool_and_no_more_is_told() {
        let root = tempfile::tempdir().unwrap();
        let of = |max_model_len, kv_memory: u64| {
            let kv_memory = Some(ByteSize(kv_memory));
            Plan::new(&ClusterConfig { max_model_len, kv_memory, ..config(root.path(), 1) }, Placement::Here)
        };
        let whole = of(None, 1 << 30).unwrap();
        let block_bytes = whole.memory[0].kv / whole.kv_blocks as u64;
        assert!(of(None, 2 * block_bytes).unwrap_err().to_string().contains("a sequence of 256 tokens"));
        let plan = of(Some(20), 2 * block_bytes).unwrap();
        assert_eq!((plan.kv_blocks, plan.shape.context, plan.load.shape.context), (2, 20, 256));
        assert!(plan.to_string().contains("20 of 256 positions, "), "{plan}");
        let card = plan.model_card();
        assert_eq!((card.shape.context, card.parameters), (20, whole.model.shape.parameters()));
        assert_eq!(plan.engine_config(vec![1]).shape.context, 20);
        assert!(of(Some(20), block_bytes).unwrap_err().to_string().contains("a sequence of 20 tokens"));
        let error = of(Some(257), 1 << 30).unwrap_err();
        assert!(
            error.exit_code() == 2 && error.to_string().contains("--max-model-len 257 is more than the 256 positions")
        );
        assert!(error.to_string().contains("hint: --max-model-len 256 or less"), "{error}");
        assert_eq!(of(Some(256), 1 << 30).unwrap().to_string(), whole.to_string());
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
            Plan::new(&ClusterConfig { model, logit_softcap, ..config(root.path(), 1) }, Placement::Here)
        };
        let caps = |plan: Plan| [plan.shape.logit_softcap, plan.load.shape.logit_softcap];
        assert_eq!(caps(of("C-softcap20", None).unwrap()), [Some(15.0); 2]);
        assert_eq!(caps(of("C-softcap20", Some(20.0)).unwrap()), [Some(20.0); 2]);
        let demo = Plan::new(&ClusterConfig { logit_softcap: Some(20.0), ..config(root.path(), 1) }, Placement::Here);
        assert!(demo.unwrap_err().to_string().contains("does not cap its logits"));
    }

    #[test]
    fn a_context_beyond_memory_is_cut_and_said_and_a_wish_is_not() {
        let root = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama-9-3").display().to_string();
        let of = |max_model_len, kv_memory: Option<u64>| {
            let (model, kv_memory) = (Some(model.clone()), kv_memory.map(ByteSize));
            Plan::new(&ClusterConfig { model, max_model_len, kv_memory, ..config(root.path(), 2) }, Placement::Here)
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
        let plan = Plan::new(&greedy, Placement::Here).unwrap();
        let error = plan.check_memory().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = plan.to_string();
        assert!(!text.contains("the ranks need"), "a start says it as its error: {text}");
        Plan::new(&config(root.path(), 2), Placement::Here).unwrap().check_memory().unwrap();
    }
}
