//! An exercise in code for each step: a function that does at first what the step does, and is to do what the real server does.
//!
//! A reader writes in [`crate::yours`]; [`crate::solutions`] has an answer to each. [`check`] knows neither: it calls a function and looks
//! at what comes of it.

use std::{collections::HashSet, ops::Range};

use anyhow::{Result, bail, ensure};

use crate::{
    blocks::BLOCK,
    cache::Cache,
    model::{Model, dot},
    pass::{Memory, alone, last, pass, rows_of, softmax, unseen},
};

/// How many there are.
pub const COUNT: usize = 11;

/// The functions, a step each, in their order. What each should do stands above it in [`crate::yours`].
pub trait Tasks {
    /// Tokens near to a whole text.
    fn near_text(&self, model: &Model, text: &[u32], count: usize) -> Vec<u32>;
    /// The mean of values by the softmax of their scores, in one reading.
    fn weigh(&self, seen: &mut dyn Iterator<Item = (f32, f32)>) -> f32;
    /// A second text that begins as a first does.
    fn fork(&self, memory: &mut dyn Memory, layers: usize, tokens: usize, from: usize, to: usize);
    /// A cut that follows the likeliest.
    fn min_p(&self, candidates: Vec<(u32, f32)>, least: f32) -> Vec<(u32, f32)>;
    /// Batches that wait little.
    fn batches(&self, lengths: &[usize], places: usize) -> Vec<Vec<usize>>;
    /// Names of full blocks.
    fn names(&self, tokens: &[u32]) -> Vec<u64>;
    /// Bytes with more scales than one.
    fn round(&self, weights: &[f32], group: usize) -> (Vec<i8>, Vec<f32>);
    /// Even shares.
    fn parts(&self, outputs: usize, threads: usize) -> Vec<Range<usize>>;
    /// A sum over ranks that moves little.
    fn all_reduce(&self, wires: &mut Wires);
    /// Turns among clients.
    fn order(&self, clients: &[&str]) -> Vec<usize>;
    /// Text up to a stop string.
    fn tell(&self, pieces: &[&str], stop: &str) -> Vec<String>;
}

/// A vector of each rank, and a count of what they read of one another's.
#[derive(Clone, Debug)]
pub struct Wires {
    vectors: Vec<Vec<f32>>,
    crossed: usize,
}

impl Wires {
    /// How many ranks there are.
    pub fn world(&self) -> usize {
        self.vectors.len()
    }

    /// Numbers of each vector.
    pub fn length(&self) -> usize {
        self.vectors[0].len()
    }

    /// What `reader` reads of the vector of `rank`.
    pub fn read(&mut self, reader: usize, rank: usize, range: Range<usize>) -> Vec<f32> {
        self.crossed += if reader == rank { 0 } else { range.len() };
        self.vectors[rank][range].to_vec()
    }

    /// A rank replaces numbers of its own vector.
    pub fn write(&mut self, rank: usize, start: usize, values: &[f32]) {
        self.vectors[rank][start..start + values.len()].copy_from_slice(values);
    }
}

/// Whether the function of a step does what it should.
///
/// # Errors
/// When it does not, with what it did instead; or when there is no such step.
pub fn check(step: usize, tasks: &dyn Tasks, model: &Model) -> Result<()> {
    match step {
        1 => near_text(tasks, model),
        2 => weigh(tasks),
        3 => fork(tasks, model),
        4 => min_p(tasks),
        5 => batches(tasks),
        6 => names(tasks),
        7 => round(tasks),
        8 => parts(tasks),
        9 => all_reduce(tasks),
        10 => order(tasks),
        11 => tell(tasks),
        other => bail!("there are {COUNT} steps, and {other} is none of them"),
    }
}

fn near_text(tasks: &dyn Tasks, model: &Model) -> Result<()> {
    let text = [10, 200, 3000, 77];
    let near = tasks.near_text(model, &text, 5);
    ensure!(near.iter().collect::<HashSet<_>>().len() == 5, "five tokens are wanted, not {near:?}");
    let vector = |id: u32| &model.tokens[id as usize * model.sizes.width..][..model.sizes.width];
    // The cosine with the mean, but for a factor that all tokens have in common.
    let fit = |id: u32| {
        let with_all: f32 = text.iter().map(|&token| dot(vector(id), vector(token))).sum();
        with_all / dot(vector(id), vector(id)).sqrt().max(1e-9)
    };
    let least = near.iter().map(|&id| fit(id)).fold(f32::INFINITY, f32::min);
    let nearer = (0..model.sizes.vocab as u32).find(|id| !near.contains(id) && fit(*id) > least + 1e-3 * least.abs());
    ensure!(nearer.is_none(), "of {near:?} some are further from the text than token {}", nearer.unwrap_or(0));
    Ok(())
}

fn weigh(tasks: &dyn Tasks) -> Result<()> {
    let values = [1.0, 2.0, 3.0];
    // The largest first, in the middle and last; where exponentials are of a good size, too large for an f32, and too small.
    for scores in [[2.0f32, 0.5, -1.0], [0.5, 2.0, -1.0], [-1.0, 0.5, 2.0]] {
        for around in [0.0, 1000.0, -1000.0] {
            let scores = scores.map(|score| score + around);
            let mut shares = scores;
            softmax(&mut shares);
            let expected: f32 = shares.iter().zip(values).map(|(share, value)| share * value).sum();
            let given = tasks.weigh(&mut scores.into_iter().zip(values));
            ensure!((given - expected).abs() < 1e-3, "scores {scores:?} gave {given}, and should give {expected}");
        }
    }
    Ok(())
}

fn fork(tasks: &dyn Tasks, model: &Model) -> Result<()> {
    let prompt = [5, 6, 7, 8];
    let mut cache = Cache::default();
    pass(model, &rows_of(0, &prompt, 0), &mut cache, &mut alone, &mut unseen);
    let before = cache.len();
    tasks.fork(&mut cache, model.sizes.layers, prompt.len(), 0, 1);
    ensure!(cache.len() == 2 * before, "{} numbers are kept, and {} should be", cache.len(), 2 * before);
    // Both go on, each with a token of its own.
    let texts = [20, 30].map(|own| [&prompt[..], &[own]].concat());
    let rows = [rows_of(0, &texts[0], prompt.len()), rows_of(1, &texts[1], prompt.len())].concat();
    let together = pass(model, &rows, &mut cache, &mut alone, &mut unseen);
    for (text, logits) in texts.iter().zip(together.chunks_exact(model.sizes.vocab)) {
        let whole = pass(model, &rows_of(0, text, 0), &mut Cache::default(), &mut alone, &mut unseen);
        let difference = last(&whole, model).iter().zip(logits).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        ensure!(difference < 1e-3, "logits differ by {difference} from those of the whole text computed");
    }
    Ok(())
}

fn min_p(tasks: &dyn Tasks) -> Result<()> {
    let candidates = [(7, 0.5), (3, 0.25), (9, 0.15), (1, 0.1)];
    for (least, left) in [(0.4, &[(7, 2.0 / 3.0), (3, 1.0 / 3.0)][..]), (0.0, &candidates), (1.0, &[(7, 1.0)])] {
        let given = tasks.min_p(candidates.to_vec(), least);
        let is_near = |(a, b): (&(u32, f32), &(u32, f32))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5;
        let is_right = given.len() == left.len() && given.iter().zip(left).all(is_near);
        ensure!(
            is_right,
            "at least {least} of the likeliest leaves {given:?} of {candidates:?}, and should leave {left:?}"
        );
    }
    Ok(())
}

fn batches(tasks: &dyn Tasks) -> Result<()> {
    for (lengths, places, least) in [(&[3, 48, 5, 40, 4, 44, 6, 41][..], 4, 54), (&[9, 1, 1, 1, 9], 2, 11)] {
        let batches = tasks.batches(lengths, places);
        let mut all = batches.concat();
        all.sort_unstable();
        ensure!(all.into_iter().eq(0..lengths.len()), "each text is to be in one batch: {batches:?}");
        ensure!(batches.iter().all(|batch| batch.len() <= places), "a batch has {places} places: {batches:?}");
        // A batch lasts as long as its longest text.
        let steps: usize = batches.iter().flat_map(|batch| batch.iter().map(|&text| lengths[text]).max()).sum();
        ensure!(steps <= least, "texts of {lengths:?} tokens take {steps} steps as {batches:?}, and {least} would do");
    }
    Ok(())
}

fn names(tasks: &dyn Tasks) -> Result<()> {
    let block = |first: usize| (first..first + BLOCK).map(|token| token as u32).collect::<Vec<_>>();
    let text = [block(0), block(100), vec![1]].concat();
    let names = tasks.names(&text);
    ensure!(names.len() == 2, "a text of two full blocks and a token has {} names", names.len());
    let alike = tasks.names(&[block(0), block(200)].concat());
    ensure!(alike[0] == names[0], "blocks of the same tokens at the beginning of two texts have two names");
    ensure!(alike[1] != names[1], "blocks of different tokens have one name");
    let other = tasks.names(&[block(300), block(100)].concat());
    ensure!(other[1] != names[1], "a second block has the name of another whose text began differently");
    let twice = tasks.names(&[block(0), block(0)].concat());
    ensure!(twice[0] != twice[1], "the first and the second block of a text have one name");
    Ok(())
}

fn round(tasks: &dyn Tasks) -> Result<()> {
    let group = 64;
    // One group with a weight that is far from all others, one without, one of nothing.
    let mut weights: Vec<f32> =
        (0..3 * group).map(|i| if i < 2 * group { 0.02 * (i as f32).sin() } else { 0.0 }).collect();
    weights[5] = 10.0;
    let (bytes, scales) = tasks.round(&weights, group);
    ensure!((bytes.len(), scales.len()) == (weights.len(), 3), "{} bytes and {} scales", bytes.len(), scales.len());
    for (g, weights) in weights.chunks(group).enumerate() {
        let most = weights.iter().fold(0f32, |most, weight| most.max(weight.abs()));
        for (i, weight) in weights.iter().enumerate() {
            let stored = f32::from(bytes[g * group + i]) * scales[g];
            let is_near = (stored - weight).abs() <= most / 127.0 * 0.51 + 1e-9;
            ensure!(is_near, "a weight of {weight} became {stored}; the largest of its group is {most}");
        }
    }
    Ok(())
}

fn parts(tasks: &dyn Tasks) -> Result<()> {
    for (outputs, threads) in [(9, 4), (768, 5), (4096, 3), (8, 8)] {
        let parts = tasks.parts(outputs, threads);
        ensure!(parts.len() == threads, "{outputs} outputs on {threads} threads: {} parts", parts.len());
        ensure!(
            parts.iter().flat_map(Clone::clone).eq(0..outputs),
            "{parts:?} are not all of {outputs} in their order"
        );
        let sizes = || parts.iter().map(Range::len);
        let spread = sizes().max().unwrap_or(0) - sizes().min().unwrap_or(0);
        ensure!(spread <= 1, "{parts:?}: one thread has {spread} outputs more than another, and all wait for it");
    }
    Ok(())
}

fn all_reduce(tasks: &dyn Tasks) -> Result<()> {
    let length = 10;
    for world in 1..=4 {
        let vector = |rank: usize| (0..length).map(|i| 0.1 * (7 * rank + 3 * i) as f32).collect::<Vec<_>>();
        let mut wires = Wires { vectors: (0..world).map(vector).collect(), crossed: 0 };
        let expected: Vec<f32> = (0..length).map(|i| wires.vectors.iter().map(|vector| vector[i]).sum()).collect();
        tasks.all_reduce(&mut wires);
        let is_sum = |vector: &Vec<f32>| vector.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4);
        ensure!(
            wires.vectors.iter().all(is_sum),
            "{world} ranks have {:?}, and should all have {expected:?}",
            wires.vectors
        );
        ensure!(wires.vectors.windows(2).all(|pair| pair[0] == pair[1]), "the bits differ from rank to rank");
        let most = 2 * (world - 1) * length;
        ensure!(wires.crossed <= most, "{} numbers crossed between {world} ranks, and {most} would do", wires.crossed);
    }
    Ok(())
}

fn order(tasks: &dyn Tasks) -> Result<()> {
    for clients in [&["a", "a", "a", "a", "b", "c", "b"][..], &["a", "b", "b", "a", "a", "c"], &["a", "a"]] {
        let order = tasks.order(clients);
        let mut all = order.clone();
        all.sort_unstable();
        ensure!(all.into_iter().eq(0..clients.len()), "{order:?} is not each request once");
        // How many of the same client came before.
        let turn = |request: usize| clients[..request].iter().filter(|client| **client == clients[request]).count();
        let is_fair = order.windows(2).all(|pair| turn(pair[0]) <= turn(pair[1]));
        let names: Vec<&str> = order.iter().map(|&request| clients[request]).collect();
        ensure!(is_fair, "requests of {clients:?} are served as {names:?}: somebody waits for another's second");
    }
    Ok(())
}

fn tell(tasks: &dyn Tasks) -> Result<()> {
    let cases: [(&[&str], &str, &[&str]); 4] = [
        (&["Hello", " wor", "ld", "! More"], "world", &["Hello", " ", "", "", ""]),
        (&["a wor", "m is", " no ", "wo"], "world", &["a ", "worm is", " no ", "", "wo"]),
        (&["aa", "ab", "x"], "aab", &["", "a", "", ""]),
        (&["né", "e à"], "é à", &["n", "ée à", ""]),
    ];
    for (pieces, stop, expected) in cases {
        let told = tasks.tell(pieces, stop);
        ensure!(told == expected, "of {pieces:?} up to {stop:?} is told {told:?}, and should be {expected:?}");
    }
    Ok(())
}
