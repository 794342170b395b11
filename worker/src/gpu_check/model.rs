//! Whole steps of small models with odd sizes: against the CPU, captured against launched one by one, and over each link.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nanoinfer_checkpoint::Checkpoint;
use nanoinfer_shared::{
    ModelShape, Partition,
    comm::{Abort, CommDType, Communicator, Hosts, Local, Shm, ShmSegment},
    model::{
        families::FAMILIES,
        family::{Layout, Source},
    },
    protocol::{
        BLOCK_TOKENS, BlockId, CommKind, DType, Device, LoadOrder, OnHost, RowRequest, SequenceStep, StepPlan, TokenId,
        Wants,
    },
};
use safetensors::{Dtype, tensor::TensorView};

use super::{Section, Trouble, values};
use crate::{
    WorkerError, backend,
    cuda::Held,
    fit::kv_dtype_on_gpu,
    runner::{Link, Runner},
    trace::Trace,
};

/// Five heads of 64, a hidden layer of three blocks and a bit, a vocabulary of two blocks and a bit.
pub(super) const CONFIG: &str =
    r#"{"n_layer":2,"n_head":5,"n_embd":320,"n_inner":200,"vocab_size":157,"n_positions":64}"#;
/// Beside it, all that other families' passes are made of: shared heads, norms of heads, gates and rotations; then tables of values, windows,
/// and all that a stream may do beside adding up.
const OTHERS: [(&str, &str); 2] = [
    (
        "llama",
        r#"{"model_type":"qwen3","num_hidden_layers":2,"num_attention_heads":6,"num_key_value_heads":2,"hidden_size":96,"head_dim":24,
            "intermediate_size":88,"vocab_size":157,"max_position_embeddings":64,"tie_word_embeddings":true}"#,
    ),
    (
        "nanochat",
        r#"{"model_type":"nanochat_later","num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,"hidden_size":96,
            "intermediate_size":200,"vocab_size":157,"max_position_embeddings":64,"residual_lambdas":true,"smear_gate_channels":24,
            "backout":true,"value_gate_channels":12,"value_gate_factor":3.0,"attention_windows":[16,64,20],"qk_norm_factor":1.2}"#,
    ),
];
const KV_BLOCKS: usize = 12;
const MAX_SEQS: usize = 4;
const MAX_TOKENS: usize = 40;
/// Rows of the last step, which a captured one fills up to four: products of another size may have other bits.
const PADDED: usize = 3;
/// Logits of f32 against the CPU's, relative to the largest.
const F32_TOLERANCE: f64 = 1e-4;
/// Of rounded types, whose rounding takes other ways: relative error over all logits, as for the CPU's own.
const ROUNDED_TOLERANCE: f64 = 0.02;

pub(super) fn check(gpu: u32, dtype: DType, scratch: &Path, section: &mut Section<'_>) -> Result<(), Trouble> {
    check_model(gpu, dtype, &Small::write("gpt2", CONFIG, scratch)?, section)?;
    for (name, config) in OTHERS {
        check_model(gpu, dtype, &Small::write(name, config, scratch)?, section)?;
    }
    Ok(())
}

fn check_model(gpu: u32, dtype: DType, model: &Small, section: &mut Section<'_>) -> Result<(), Trouble> {
    let what = |what: &str| format!("{}, {what}", model.name);
    // The CPU has no f16; f32 is what both are near to.
    let on_cpu = model.order(Device::Cpu, if dtype == DType::F16 { DType::F32 } else { dtype }, CommKind::Local);
    let exact = run_all(&mut *model.start(&on_cpu, 0, 1, alone())?)?;
    let order = model.order(Device::Gpu(gpu), dtype, CommKind::Local);
    let run = |with_graphs| {
        let held = Held::load(&order, gpu, 0, model.partition(1).share(0), &Checkpoint::open(&order.weights)?)?;
        let mut runner = held.runner(KV_BLOCKS, alone(), Trace::default(), with_graphs)?;
        Ok::<_, Trouble>((run_all(&mut runner)?, alone_and_in_company(&mut runner)?))
    };
    let ((captured, _), (plain, company)) = (run(true)?, run(false)?);
    compare(section, &what("steps on the GPU and on the CPU"), &plain, &exact, dtype);
    let of_one_size = |logits: &[Vec<f32>]| bits(&logits[..logits.len() - PADDED].concat());
    section.same(&what("captured steps and plain launches"), of_one_size(&captured) == of_one_size(&plain));
    compare(section, &what("captured steps of a batch that is filled up"), &captured, &exact, dtype);
    tell_company(section, &what("a row alone and in a batch of four"), company);
    Ok(())
}

/// Whether a row has other bits in a batch: no failure, but worth knowing.
fn tell_company(section: &mut Section<'_>, what: &str, [alone, together]: [Vec<f32>; 2]) {
    let mut sorted = alone.clone();
    sorted.sort_by(f32::total_cmp);
    let margin = sorted[sorted.len() - 1] - sorted[sorted.len() - 2];
    let worst = alone.iter().zip(&together).fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs()));
    let same = bits(&alone) == bits(&together);
    let differs = format!("differs by {worst:.1e}; its two largest logits by {margin:.1e}");
    section.tell(what, if same { "the same bits".into() } else { differs }, None);
}

/// Two ranks, whose partial sums go through the host's memory.
pub(super) fn check_shared_gpu(gpu: u32, scratch: &Path, section: &mut Section<'_>) -> Result<(), Trouble> {
    for (name, config) in [("gpt2", CONFIG), OTHERS[1]] {
        check_two_ranks(gpu, &Small::write(name, config, scratch)?, section)?;
    }
    Ok(())
}

fn check_two_ranks(gpu: u32, model: &Small, section: &mut Section<'_>) -> Result<(), Trouble> {
    let on_cpu = model.order(Device::Cpu, DType::F32, CommKind::Local);
    let exact = run_all(&mut *model.start(&on_cpu, 0, 1, alone())?)?;
    let segment = ShmSegment::create(2)?;
    let order = model.order(Device::Gpu(gpu), DType::F32, CommKind::Shm);
    let [left, right] = on_two_ranks(|rank| {
        let abort = Abort::default();
        let comm = Shm::open(segment.try_clone()?, rank, Hosts::new(&[2]), CommDType::F32, false, &abort)
            .map_err(WorkerError::from)?;
        let comm: Box<dyn Communicator> = Box::new(comm);
        let mut runner = model.start(&order, rank, 2, Link::Host(comm))?;
        let rows = run_all(&mut *runner);
        if rows.is_err() {
            abort.pull();
        }
        rows
    })?;
    let rows: Vec<Vec<f32>> = left.into_iter().zip(right).map(|(left, right)| [left, right].concat()).collect();
    let what = format!("{}, two ranks on this GPU, through the host's memory", model.name);
    compare(section, &what, &rows, &exact, DType::F32);
    Ok(())
}

/// What both ranks of a pair come to, each on a thread of its own.
fn on_two_ranks<T: Send>(run: impl Fn(usize) -> Result<T, Trouble> + Sync) -> Result<[T; 2], Trouble> {
    let [first, second] = std::thread::scope(|scope| {
        let run = &run;
        [0, 1].map(|rank| scope.spawn(move || run(rank))).map(|rank| rank.join().map_err(|_| Trouble::Panicked)?)
    });
    Ok([first?, second?])
}

/// Of one rank, which has nobody to add up with.
pub(super) fn alone() -> Link {
    Link::Host(Box::new(Local))
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

fn compare(section: &mut Section<'_>, what: &str, got: &[Vec<f32>], exact: &[Vec<f32>], dtype: DType) {
    let (got, exact): (Vec<f32>, Vec<f32>) = (got.concat(), exact.concat());
    let pairs = || got.iter().zip(&exact).map(|(&got, &exact)| (f64::from(got), f64::from(exact)));
    let (found, limit) = if dtype == DType::F32 {
        let largest = pairs().fold(1.0, |largest: f64, (_, exact)| largest.max(exact.abs()));
        (pairs().fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs())) / largest, F32_TOLERANCE)
    } else {
        let error: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
        ((error / pairs().map(|(_, b)| b * b).sum::<f64>()).sqrt(), ROUNDED_TOLERANCE)
    };
    let whole = got.len() == exact.len() && got.iter().all(|x| x.is_finite());
    section.tell(what, format!("relative difference {found:.1e}, of {limit:.0e}"), Some(whole && found <= limit));
}

/// Logits of prompts, of batches of 1, 2 and 4 that continue them, of a chunk beside a decode, and of a batch of 3.
fn run_all(runner: &mut dyn Runner) -> Result<Vec<Vec<f32>>, Trouble> {
    let sequence = |tokens: Vec<TokenId>, start: usize, first_block: u32| {
        sequence(tokens, start, first_block, (3, 0.8, vec![5, 150]))
    };
    let prompt = |seed: u32, length: u32| (0..length).map(|i| (i * 31 + seed * 17) % 157).collect();
    let mut plans = vec![
        vec![sequence(prompt(1, 33), 0, 0)],
        vec![sequence(prompt(2, 5), 0, 3), sequence(prompt(3, 17), 0, 6), sequence(prompt(4, 1), 0, 9)],
    ];
    let mut sequences = [(33, 0), (5, 3), (17, 6), (1, 9)];
    let round = |sequences: &mut [(usize, u32)]| {
        let token = 7 * sequences.len() as u32;
        let of = |(length, first_block): &mut (usize, u32)| {
            *length += 1;
            sequence(vec![token], *length - 1, *first_block)
        };
        sequences.iter_mut().map(of).collect::<Vec<_>>()
    };
    plans.extend([1, 2, MAX_SEQS].map(|batch| round(&mut sequences[..batch])));
    plans.push(vec![sequence(prompt(5, 9), sequences[1].0, 3), sequence(vec![11], sequences[0].0, 0)]);
    (sequences[1].0, sequences[0].0) = (sequences[1].0 + 9, sequences[0].0 + 1);
    plans.push(round(&mut sequences[..PADDED]));
    let mut rows = Vec::new();
    for (step, sequences) in (0..).zip(plans) {
        let count = sequences.len() as u32;
        runner.run(&StepPlan { step, sequences, timed: false }, &mut || Ok(Vec::new()))?;
        rows.extend(runner.fetch(&(0..count).collect::<Vec<_>>())?.iter().map(|row| row.to_vec()));
    }
    Ok(rows)
}

/// Logits of the same token of the first text, decoded alone and beside three others.
fn alone_and_in_company(runner: &mut dyn Runner) -> Result<[Vec<f32>; 2], Trouble> {
    let mut first = |texts: &[(usize, u32)]| {
        let sequences = texts.iter().map(|&(position, first_block)| one_token(position, first_block)).collect();
        runner.run(&StepPlan { step: 100, sequences, timed: false }, &mut || Ok(Vec::new()))?;
        Ok::<_, Trouble>(runner.fetch(&[0])?[0].to_vec())
    };
    Ok([first(&[(30, 0)])?, first(&[(30, 0), (5, 3), (16, 6), (0, 9)])?])
}

/// A greedy token at a position of a text whose blocks follow one another.
pub(super) fn one_token(position: usize, first_block: u32) -> SequenceStep {
    sequence(vec![23], position, first_block, (1, 1.0, Vec::new()))
}

/// Tokens of such a text, and candidates behind the last: how many, their temperature, and adjusted ids.
fn sequence(
    tokens: Vec<TokenId>,
    start: usize,
    first_block: u32,
    (k, temperature, adjusted): (u32, f32, Vec<TokenId>),
) -> SequenceStep {
    let blocks = (start + tokens.len()).div_ceil(BLOCK_TOKENS) as u32;
    let row = tokens.len() as u32 - 1;
    SequenceStep {
        tokens,
        start: start as u32,
        before: (start > 0).then_some(9),
        blocks: (first_block..first_block + blocks).map(BlockId).collect(),
        outputs: vec![RowRequest { row, wants: Wants::Candidates { k, temperature, adjusted, masked: None } }],
    }
}

/// What a rank of a check is told, on one thread, with the KV cache that a GPU would have.
pub(super) fn order_of(
    shape: &ModelShape,
    weights: Vec<PathBuf>,
    device: Device,
    dtype: DType,
    comm: CommKind,
    (max_batched_tokens, max_seqs): (usize, usize),
) -> LoadOrder {
    let world = if comm == CommKind::Local { 1 } else { 2 };
    LoadOrder {
        shape: shape.clone(),
        partition: Partition::new(shape, world).expect("there are two heads"),
        weights,
        fingerprint: 0,
        dtype,
        kv_dtype: kv_dtype_on_gpu(dtype),
        isa: None,
        comm,
        comm_dtype: CommDType::F32,
        link_encryption: true,
        hosts: vec![world],
        max_batched_tokens,
        max_seqs,
        trace: None,
        on_host: OnHost { device, ..OnHost::cpu(1) },
    }
}

/// A checkpoint with numbers that are the same at every run.
struct Small {
    name: &'static str,
    shape: ModelShape,
    path: PathBuf,
}

impl Small {
    fn write(name: &'static str, config: &str, scratch: &Path) -> Result<Self, Trouble> {
        let shape = ModelShape::from_config_json(config).expect("the configurations above are sound");
        let path = scratch.join(format!("gpu-check-{name}.safetensors"));
        let family = FAMILIES.iter().find(|family| family.model_types.contains(&shape.model_type()));
        let names = &family.expect("a shape is of a family").namings[0];
        let values = |(source, seed): (Source, usize)| {
            let Source { tensor, mut sizes, may_be_turned, may_be_absent, .. } = source;
            if may_be_turned && names.written_layout() == Layout::Linear {
                sizes.reverse();
            }
            // Gains around 1, matrices small enough that attention does not become a choice of one.
            let (middle, factor) = if sizes.len() == 1 && !may_be_absent { (1.0, 0.1) } else { (0.0, 0.05) };
            let values = values(sizes.iter().product(), seed).into_iter();
            (tensor, sizes, values.flat_map(|x| (middle + factor * x).to_le_bytes()).collect::<Vec<u8>>())
        };
        let tensors = names.tensors(&shape).zip(1..).map(values);
        let tensors: Vec<_> = tensors.collect();
        let views = tensors.iter().map(|(name, sizes, bytes)| {
            (name, TensorView::new(Dtype::F32, sizes.clone(), bytes).expect("as many bytes as the sizes say"))
        });
        fs::write(&path, safetensors::serialize(views, None).expect("no name stands twice"))?;
        Ok(Self { name, shape, path })
    }

    fn partition(&self, world: usize) -> Partition {
        Partition::new(&self.shape, world).expect("there are five heads")
    }

    fn order(&self, device: Device, dtype: DType, comm: CommKind) -> LoadOrder {
        order_of(&self.shape, vec![self.path.clone()], device, dtype, comm, (MAX_TOKENS, MAX_SEQS))
    }

    fn start(&self, order: &LoadOrder, rank: usize, world: usize, link: Link) -> Result<Box<dyn Runner>, Trouble> {
        let partition = self.partition(world);
        let open = || Ok(Checkpoint::open(&order.weights)?);
        let loaded = backend::load(order, rank, partition.share(rank), open)?;
        Ok(loaded.start(KV_BLOCKS, None, link, Trace::default())?)
    }
}
