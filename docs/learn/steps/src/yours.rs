//! Where a reader writes: a function for each step, which does at first what the step does, and is to do what the real server does.
//!
//! `cargo run --release --example check -- STEP` says whether it does. What is not used yet has a name that begins with `_`.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::Range,
};

use crate::{
    blocks::BLOCK,
    model::Model,
    pass::Memory,
    tasks::{Tasks, Wires},
};

/// Whoever reads this.
#[derive(Clone, Copy, Debug)]
pub struct Yours;

impl Tasks for Yours {
    // Step 1. A text has a direction too: the mean of its tokens' vectors. The `count` tokens nearest to it, by the cosine. Searching
    // texts by what they mean begins like this.
    fn near_text(&self, model: &Model, text: &[u32], count: usize) -> Vec<u32> {
        let last = text[text.len() - 1];
        model.neighbours(last, count).into_iter().map(|(id, _)| id).collect()
    }

    // Step 2. The sum of values, each times the softmax of its score: what attention does with one number of a value. The pairs can be
    // read once, so the largest score is not known before the end, and an exponential must not overflow. Keep the largest so far; where
    // a larger one comes, scale down what is summed. FlashAttention (Dao et al. 2022) is this, tile by tile.
    fn weigh(&self, seen: &mut dyn Iterator<Item = (f32, f32)>) -> f32 {
        let (mut all, mut weighed) = (0.0, 0.0);
        for (score, value) in seen {
            all += score.exp();
            weighed += score.exp() * value;
        }
        weighed / all
    }

    // Step 3. Several answers to one question: text `to` begins with the `tokens` tokens of text `from`, whose keys and values are in the
    // memory, and nothing is computed again.
    fn fork(&self, _memory: &mut dyn Memory, _layers: usize, _tokens: usize, _from: usize, _to: usize) {}

    // Step 4. A cut that follows the likeliest: whoever is less than `least` times as likely goes, and the shares of those that are left
    // sum to 1 again. Where the model is sure it leaves little, where it is not it leaves much.
    fn min_p(&self, candidates: Vec<(u32, f32)>, _least: f32) -> Vec<(u32, f32)> {
        candidates
    }

    // Step 5. A batch lasts as long as its longest text. Deal out texts of these lengths, by their numbers, into batches of at most
    // `places`, so that all batches together take as few steps as can be.
    fn batches(&self, lengths: &[usize], places: usize) -> Vec<Vec<usize>> {
        let texts: Vec<usize> = (0..lengths.len()).collect();
        texts.chunks(places).map(<[usize]>::to_vec).collect()
    }

    // Step 6. `Blocks` knows a full block by all tokens up to its end, so a long text costs the square of its length. Give each full block
    // of a text a name of one number instead: equal where all tokens up to its end are equal, and else not.
    fn names(&self, tokens: &[u32]) -> Vec<u64> {
        let name = |block: &[u32]| {
            let mut hasher = DefaultHasher::new();
            block.hash(&mut hasher);
            hasher.finish()
        };
        tokens.chunks_exact(BLOCK).map(name).collect()
    }

    // Step 7. One weight that is far from all others takes the precision of a whole row away. Give every `group` of weights a scale of
    // its own: the bytes, and a scale for each group.
    fn round(&self, weights: &[f32], group: usize) -> (Vec<i8>, Vec<f32>) {
        let most = weights.iter().fold(0f32, |most, weight| most.max(weight.abs()));
        let scale = most.max(1e-12) / 127.0;
        let bytes = weights.iter().map(|weight| (weight / scale).round() as i8).collect();
        (bytes, vec![scale; weights.len().div_ceil(group)])
    }

    // Step 8. All wait for the thread that has the most to do. Deal out outputs to threads in their order, so that no two threads differ
    // by more than one; there are at least as many outputs as threads.
    fn parts(&self, outputs: usize, threads: usize) -> Vec<Range<usize>> {
        let of_each = outputs.div_ceil(threads);
        (0..outputs).step_by(of_each).map(|start| start..(start + of_each).min(outputs)).collect()
    }

    // Step 9. Every rank leaves with the sum of all vectors, of the same bits. Here each reads all of every other's. If each sums up only
    // its own range and then reads the others' sums, twice the vector crosses for each rank but one, however many there are.
    fn all_reduce(&self, wires: &mut Wires) {
        let (world, length) = (wires.world(), wires.length());
        let mut sums = Vec::new();
        for reader in 0..world {
            let mut sum = vec![0.0; length];
            for rank in 0..world {
                sum.iter_mut().zip(wires.read(reader, rank, 0..length)).for_each(|(sum, x)| *sum += x);
            }
            sums.push(sum);
        }
        sums.iter().enumerate().for_each(|(rank, sum)| wires.write(rank, 0, sum));
    }

    // Step 10. Who asks a hundred things at once should not keep another from the first. Here stands whose each waiting request is, in the
    // order in which they came: in which order should they be served, so that clients take turns?
    fn order(&self, clients: &[&str]) -> Vec<usize> {
        (0..clients.len()).collect()
    }

    // Step 11. An answer ends before a stop string, of which nothing may be told, also where it comes in several pieces. For each piece,
    // what may be told once it is there: as much as can be, but nothing that may yet turn out to begin the stop string. Behind those,
    // what is told when the last piece has come.
    fn tell(&self, pieces: &[&str], _stop: &str) -> Vec<String> {
        pieces.iter().copied().chain([""]).map(str::to_owned).collect()
    }
}
