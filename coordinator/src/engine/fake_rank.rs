//! A rank for tests: the protocol in full, with a model that is a hash of everything before.
//!
//! Its KV pool holds a number for each token and position. A row is computed from what is read back through the block
//! table, so a wrong block, position or order shows in the next token. It panics where a plan breaks the contract.

use std::{
    io::Write,
    ops::Range,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use nanoinfer_shared::{
    ModelShape, Partition,
    comm::CommDType,
    link::{ControlLink, Socket},
    protocol::{
        BLOCK_TOKENS, CommKind, DType, FailureKind, FromRank, LoadOrder, LoadReport, LogSumExp, LogitSlice, OnHost,
        Place, RowSlice, SequenceStep, StepOutput, StepPlan, StepTimes, ToRank, TokenId, TokenMask, Wants,
    },
};

use crate::engine::{config::EngineConfig, kv_budget::KvBudget, next::Next, ranks::RestartLimit};

/// How a fake rank behaves besides answering.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    /// Each step waits for one of these; once the other end is dropped, none does.
    pub(crate) permits: Option<mpsc::Receiver<()>>,
    /// Fails in its own words instead of taking this step.
    pub(crate) fails_at: Option<u64>,
    /// Closes the link instead of taking this step.
    pub(crate) closes_at: Option<u64>,
    /// Closes the link at its first heartbeat.
    pub(crate) closes_when_pinged: bool,
    /// After so many orders, heartbeats apart, says this in place of an answer, and then nothing.
    pub(crate) ends_after: Option<(usize, LastWord)>,
    /// Says of so many starts that a peer is not there.
    pub(crate) misses_peers: usize,
}

/// What a fake rank says that is none of the protocol's answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LastWord {
    /// Nothing: its link closes.
    Silence,
    /// Bytes that are no message, of this number's kind; the link stays open.
    Noise(u64),
    /// A message that was not asked for, of this number's kind; the link stays open.
    OutOfPlace(u64),
}

/// Epoch of the links.
const EPOCH: u32 = 1;

/// What every fake rank says of a block.
const KV_BLOCK_BYTES: u64 = 1000;

/// A small model over `world` ranks with `kv_blocks` blocks.
pub(crate) fn config(world: usize, kv_blocks: usize) -> EngineConfig {
    let json = r#"{"n_positions":96,"n_embd":24,"n_head":3,"n_layer":2,"vocab_size":150,"eos_token_id":149}"#;
    let shape = ModelShape::from_config_json(json).expect("a valid configuration");
    let partition = Partition::new(&shape, world).expect("three heads");
    let load = LoadOrder {
        shape: shape.clone(),
        partition,
        weights: Vec::new(),
        fingerprint: 0,
        dtype: DType::F32,
        kv_dtype: DType::F32,
        isa: None,
        comm: CommKind::Tcp,
        hosts: vec![1; world],
        comm_dtype: CommDType::F32,
        link_encryption: true,
        max_batched_tokens: 64,
        max_seqs: 8,
        trace: None,
        on_host: OnHost::cpu(1),
    };
    EngineConfig {
        load,
        shape,
        on_hosts: vec![OnHost::cpu(1); world],
        kv: KvBudget { kv_memory: Some(kv_blocks as u64 * KV_BLOCK_BYTES) },
        ranks_per_memory: vec![1; world],
        max_queue: 100,
        max_queue_tokens: 10_000,
        prefix_cache: true,
        restarts: RestartLimit { most: 1000, within: Duration::from_secs(600) },
    }
}

impl EngineConfig {
    /// With other limits of one step.
    pub(crate) fn with_steps_of(mut self, max_seqs: usize, max_batched_tokens: usize) -> Self {
        (self.load.max_seqs, self.load.max_batched_tokens) = (max_seqs, max_batched_tokens);
        self
    }
}

/// Ranks on threads, and the coordinator's ends of their links.
pub(crate) fn spawn(
    config: &EngineConfig,
    behaviours: Vec<Behaviour>,
) -> (Vec<ControlLink<ToRank, FromRank>>, Vec<JoinHandle<()>>) {
    behaviours
        .into_iter()
        .enumerate()
        .map(|(rank, behaviour)| spawn_one(config, rank, behaviour, Pool::default()))
        .unzip()
}

/// One of them, over a pool that may have been another's.
pub(crate) fn spawn_one(
    config: &EngineConfig,
    rank: usize,
    behaviour: Behaviour,
    pool: Pool,
) -> (ControlLink<ToRank, FromRank>, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().expect("there are descriptors");
    let ours = ControlLink::over(Socket::Unix(ours), EPOCH).expect("there are descriptors");
    let vocab = config.load.partition.share(rank).vocab.clone();
    let rank = FakeRank { pool, ..FakeRank::new(vocab, config.load.max_batched_tokens) };
    (ours, thread::spawn(move || rank.run(theirs, behaviour)))
}

/// Logits of the model after `tokens`.
pub(crate) fn logits(tokens: &[TokenId], vocab: Range<usize>) -> Vec<f32> {
    let entries: Vec<u64> = (0..).zip(tokens).map(|(position, &token)| entry(token, position)).collect();
    logits_of(&entries, vocab)
}

/// What a rank answers to `wants` of a row, of which it holds `vocab`.
pub(crate) fn slice(row: &[f32], vocab: Range<usize>, wants: &Wants, mask: Option<&TokenMask>) -> RowSlice {
    let (count, temperature, listed_ids, apart, told) = match wants {
        Wants::Targets { ids, top } => (*top, 1.0, ids, false, 0),
        Wants::Candidates { k, temperature, adjusted, masked } => {
            assert_eq!(masked.is_some(), mask.is_some(), "masks are there for rows that are masked");
            (*k, *temperature, adjusted, true, masked.unwrap_or(0))
        }
    };
    let is_left = |id: TokenId| mask.is_none_or(|mask| mask.allows(id as usize - vocab.start));
    let listed_here: Vec<TokenId> = listed_ids.iter().copied().filter(|&id| vocab.contains(&(id as usize))).collect();
    let of = |id: TokenId| (id, row[id as usize]);
    let is_rest = |&id: &TokenId| is_left(id) && !(apart && listed_here.contains(&id));
    let rest: Vec<(TokenId, f32)> = vocab.clone().map(|id| id as TokenId).filter(is_rest).map(of).collect();
    let rest_sum = log_sum_exp(rest.iter().map(|&(_, logit)| logit), temperature);
    let highest = |mut of: Vec<(TokenId, f32)>, count: u32| {
        // −0 ties with 0.
        of.sort_by(|a, b| (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0)));
        of.truncate(count as usize);
        of
    };
    RowSlice {
        likeliest: highest(vocab.clone().map(|id| of(id as TokenId)).collect(), told),
        all: log_sum_exp(row[vocab].iter().copied(), 1.0),
        rest: rest_sum,
        top: highest(rest, count),
        listed: listed_here.into_iter().map(of).collect(),
    }
}

fn log_sum_exp(logits: impl Iterator<Item = f32> + Clone, temperature: f32) -> LogSumExp {
    let max = logits.clone().map(|logit| logit / temperature).fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return LogSumExp::EMPTY;
    }
    let sum = logits.map(|logit| (f64::from(logit) / f64::from(temperature) - f64::from(max)).exp()).sum();
    LogSumExp { max, sum }
}

/// A KV pool `[block][BLOCK_TOKENS]` that outlives its rank, and whether a step ever wrote to it.
pub(crate) type Pool = Arc<Mutex<(Vec<[u64; BLOCK_TOKENS]>, bool)>>;

/// One rank: what it holds of the vocabulary and of the KV pool.
#[derive(Debug)]
pub(crate) struct FakeRank {
    pub(crate) vocab: Range<usize>,
    pool: Pool,
    max_tokens: usize,
    /// Whole rows of the last step.
    last_rows: Vec<Vec<f32>>,
}

impl FakeRank {
    /// A rank without a pool.
    pub(crate) fn new(vocab: Range<usize>, max_tokens: usize) -> Self {
        Self { vocab, pool: Pool::default(), max_tokens, last_rows: Vec::new() }
    }

    /// Makes its pool, if it has none.
    pub(crate) fn allocate(&mut self, kv_blocks: usize) {
        self.pool.lock().unwrap().0.resize(kv_blocks, [0; BLOCK_TOKENS]);
    }

    /// Nothing that was in its pool is there any more.
    pub(crate) fn lose_pool(&mut self) {
        self.pool.lock().unwrap().0.fill([u64::MAX; BLOCK_TOKENS]);
    }

    fn run(mut self, socket: UnixStream, mut behaviour: Behaviour) {
        let raw = socket.try_clone().expect("there are descriptors");
        let mut link = ControlLink::over(Socket::Unix(socket), EPOCH).expect("there are descriptors");
        let mut orders = 0;
        while let Ok(message) = link.receiver.receive() {
            orders += usize::from(!matches!(message, ToRank::Ping(_)));
            if let Some((_, last_word)) = behaviour.ends_after.filter(|&(most, _)| orders > most) {
                if let ToRank::Step(plan) = &message {
                    // It came half of the way.
                    self.write(&plan.sequences[0]);
                }
                return self.end(link, &raw, message, last_word);
            }
            let answer = match message {
                ToRank::Load(order) => {
                    assert_eq!(order.max_batched_tokens, self.max_tokens);
                    FromRank::Loaded(LoadReport {
                        weight_bytes: 1,
                        kv_block_bytes: KV_BLOCK_BYTES,
                        free_bytes: 1 << 30,
                        data_address: Some(format!("rank at {}", self.vocab.start)),
                        nccl_id: None,
                    })
                }
                ToRank::Start(_) if behaviour.misses_peers > 0 => {
                    behaviour.misses_peers -= 1;
                    FromRank::Failed { kind: FailureKind::Peer, reason: "a peer is not there".into() }
                }
                ToRank::Start(order) => {
                    assert!(order.peers.contains(&format!("rank at {}", self.vocab.start)));
                    assert_ne!(order.link_key, [0; 32]);
                    self.allocate(order.kv_blocks);
                    FromRank::Ready { pool_kept: self.pool.lock().unwrap().1 }
                }
                ToRank::Leave { group } => {
                    FromRank::Left { group, data_address: Some(format!("rank at {}", self.vocab.start)) }
                }
                ToRank::Step(plan) => {
                    if behaviour.closes_at == Some(plan.step) {
                        return;
                    }
                    if behaviour.fails_at == Some(plan.step) {
                        let reason = "the fake rank was told to".into();
                        let _ = link.sender.send(FromRank::Failed { kind: FailureKind::Rank, reason });
                        return;
                    }
                    if let Some(permits) = &behaviour.permits {
                        let _ = permits.recv();
                    }
                    let masks = match plan.masked_rows() {
                        0 => Vec::new(),
                        _ => match masks(&mut link, plan.step) {
                            Some(masks) => masks,
                            None => return,
                        },
                    };
                    FromRank::Done(self.step(&plan, &masks))
                }
                ToRank::Masks(_) => panic!("masks without a step"),
                ToRank::FetchRows(rows) => FromRank::Rows(self.fetch(&rows)),
                ToRank::Ping(_) if behaviour.closes_when_pinged => return,
                ToRank::Ping(count) => FromRank::Pong { count, place: Place::default() },
                ToRank::Shutdown => return,
            };
            if link.sender.send(answer).is_err() {
                return;
            }
        }
    }

    /// Says a last word in place of what `order` asks for, and waits for the end of its link.
    fn end(
        mut self,
        mut link: ControlLink<FromRank, ToRank>,
        mut raw: &UnixStream,
        order: ToRank,
        last_word: LastWord,
    ) {
        let (LastWord::Noise(kind) | LastWord::OutOfPlace(kind)) = last_word else { return };
        let message = if matches!(last_word, LastWord::OutOfPlace(_)) { self.out_of_place(order, kind) } else { None };
        let is_said = match message {
            Some(message) => link.sender.send(message).is_ok(),
            None => raw.write_all(&noise(kind)).is_ok(),
        };
        while is_said && link.receiver.receive().is_ok() {}
    }

    /// A message that is not what `order` asks for; none where there is no such.
    fn out_of_place(&mut self, order: ToRank, kind: u64) -> Option<FromRank> {
        match order {
            // What comes from before it leaves is passed over.
            ToRank::Leave { .. } => None,
            ToRank::Step(plan) if kind.is_multiple_of(2) && plan.masked_rows() == 0 => {
                let mut output = self.step(&plan, &[]);
                let (row, first) = (output.rows.first_mut()?, self.vocab.start as TokenId);
                match kind % 3 {
                    0 => row.top = vec![(TokenId::MAX, 1.0)],
                    1 => row.top = vec![(first, 1.0); 4000],
                    _ => row.listed.push((first, 1.0)),
                }
                Some(FromRank::Done(output))
            }
            ToRank::FetchRows(rows) => Some(FromRank::Rows(vec![vec![1.0; kind as usize % 5].into(); rows.len()])),
            _ => Some(match kind % 3 {
                0 => FromRank::Left { group: 0, data_address: None },
                1 => FromRank::Rows(vec![LogitSlice::default()]),
                _ => FromRank::Done(StepOutput { step: u64::MAX, ..StepOutput::default() }),
            }),
        }
    }

    /// Its slices of rows of the last step.
    pub(crate) fn fetch(&self, rows: &[u32]) -> Vec<LogitSlice> {
        rows.iter().map(|&row| self.last_rows[row as usize][self.vocab.clone()].to_vec().into()).collect()
    }

    /// Takes a step, with the masks of its masked rows.
    pub(crate) fn step(&mut self, plan: &StepPlan, masks: &[TokenMask]) -> StepOutput {
        assert_eq!(masks.len(), plan.masked_rows());
        let mut masks = masks.iter();
        let tokens: usize = plan.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        assert!((1..=self.max_tokens).contains(&tokens), "{tokens} tokens in a step");
        let times = StepTimes { whole: Duration::from_millis(1), stages: Vec::new() };
        let times = plan.timed.then_some(times);
        let mut output = StepOutput { step: plan.step, times, ..StepOutput::default() };
        self.last_rows.clear();
        for sequence in &plan.sequences {
            let first_written = sequence.start as usize / BLOCK_TOKENS;
            for block in &sequence.blocks[first_written..] {
                let holders = plan.sequences.iter().filter(|other| other.blocks.contains(block)).count();
                assert_eq!(holders, 1, "block {} is written although shared", block.0);
            }
            self.write(sequence);
            for request in &sequence.outputs {
                let entries = self.read(sequence, sequence.start as usize + request.row as usize + 1);
                let whole = logits_of(&entries, 0..150);
                let mask = if request.wants.is_masked() { masks.next() } else { None };
                output.rows.push(slice(&whole, self.vocab.clone(), &request.wants, mask));
                self.last_rows.push(whole);
            }
        }
        output
    }

    /// Writes the keys and values of a sequence's new tokens.
    pub(crate) fn write(&mut self, sequence: &SequenceStep) {
        assert!(!sequence.tokens.is_empty());
        let pool = &mut *self.pool.lock().unwrap();
        pool.1 = true;
        for (position, &token) in (sequence.start as usize..).zip(&sequence.tokens) {
            let block = sequence.blocks[position / BLOCK_TOKENS];
            pool.0[block.0 as usize][position % BLOCK_TOKENS] = entry(token, position);
        }
    }

    fn read(&self, sequence: &SequenceStep, positions: usize) -> Vec<u64> {
        let pool = self.pool.lock().unwrap();
        let at = |position: usize| {
            let block = sequence.blocks[position / BLOCK_TOKENS];
            pool.0[block.0 as usize][position % BLOCK_TOKENS]
        };
        (0..positions).map(at).collect()
    }
}

/// The masks of a step, once they come; none where something else does, but for heartbeats.
fn masks(link: &mut ControlLink<FromRank, ToRank>, step: u64) -> Option<Vec<TokenMask>> {
    loop {
        match link.receiver.receive() {
            Ok(ToRank::Masks(masks)) if masks.step == step => return Some(masks.rows),
            Ok(ToRank::Ping(count)) => {
                link.sender.send(FromRank::Pong { count, place: Place::default() }).ok()?;
            }
            _ => return None,
        }
    }
}

/// Bytes that a link takes for no message as soon as they are there.
fn noise(kind: u64) -> Vec<u8> {
    let bytes = mix(kind).to_le_bytes();
    let frame =
        |epoch: u32, body: &[u8]| [&(4 + body.len() as u32).to_le_bytes()[..], &epoch.to_le_bytes(), body].concat();
    match kind % 4 {
        0 => [&[0xff; 4][..], &bytes].concat(),
        1 => frame(EPOCH + 1, &bytes),
        // No message begins so.
        2 => frame(EPOCH, &[&[0xff; 5][..], &bytes].concat()),
        _ => frame(EPOCH, &[]),
    }
}

/// Forces tokens now and then, up to a block and a half: which and when is a hash of the answer.
#[derive(Clone, Debug)]
pub(crate) struct Forcing(pub(crate) u64);

impl Next for Forcing {
    fn after(&mut self, id: TokenId) -> Vec<TokenId> {
        self.0 = mix(self.0 ^ u64::from(id));
        // What is forced forces too: any oftener, and most answers would be.
        let count = if self.0.is_multiple_of(16) { 1 + (self.0 >> 8) % 24 } else { 0 };
        (0..count).map(|i| (mix(self.0 ^ i << 32) % 150) as TokenId).collect()
    }

    fn boxed(&self) -> Box<dyn Next> {
        Box::new(self.clone())
    }
}

/// Forces, lets but a third of the tokens come now and then, is stuck or whole at some point: all a hash of the answer, too.
#[derive(Clone, Debug)]
pub(crate) struct Shaping(pub(crate) Forcing);

impl Next for Shaping {
    fn after(&mut self, id: TokenId) -> Vec<TokenId> {
        self.0.after(id)
    }

    fn is_masking(&self) -> bool {
        self.0.0 % 5 < 2
    }

    fn mask(&mut self) -> Result<TokenMask, String> {
        let state = self.0.0;
        let allowed = |&id: &TokenId| mix(state ^ u64::from(id) << 20).is_multiple_of(3);
        match state % 1009 {
            0 => Err("a fake grammar was told to be stuck".into()),
            _ => Ok((0..150).filter(allowed).collect()),
        }
    }

    fn is_over(&self) -> bool {
        self.0.0 % 211 == 1
    }

    fn boxed(&self) -> Box<dyn Next> {
        Box::new(self.clone())
    }
}

fn entry(token: TokenId, position: usize) -> u64 {
    mix(u64::from(token) << 32 | position as u64)
}

fn logits_of(entries: &[u64], vocab: Range<usize>) -> Vec<f32> {
    let state = entries.iter().fold(1, |state, entry| mix(state ^ entry));
    vocab.map(|id| (mix(state ^ (id as u64) << 40) >> 40) as f32 / (1 << 21) as f32).collect()
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
