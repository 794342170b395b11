//! An answer to each exercise, for who has tried. Nothing needs them but the test that holds the checks to be passable.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    mem,
    ops::Range,
};

use crate::{
    blocks::BLOCK,
    model::{Model, dot},
    pass::{Memory, Row},
    tasks::{Tasks, Wires},
};

/// Answers.
#[derive(Clone, Copy, Debug)]
pub struct Solutions;

impl Tasks for Solutions {
    fn near_text(&self, model: &Model, text: &[u32], count: usize) -> Vec<u32> {
        let vector = |id: u32| &model.tokens[id as usize * model.sizes.width..][..model.sizes.width];
        // The sum points where the mean does.
        let mut sum = vec![0.0; model.sizes.width];
        text.iter().for_each(|&id| sum.iter_mut().zip(vector(id)).for_each(|(sum, x)| *sum += x));
        let cosine = |id: u32| dot(&sum, vector(id)) / dot(vector(id), vector(id)).sqrt().max(1e-9);
        let mut all: Vec<(u32, f32)> = (0..model.sizes.vocab as u32).map(|id| (id, cosine(id))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.into_iter().take(count).map(|(id, _)| id).collect()
    }

    fn weigh(&self, seen: &mut dyn Iterator<Item = (f32, f32)>) -> f32 {
        let (mut most, mut all, mut weighed) = (f32::NEG_INFINITY, 0.0, 0.0);
        for (score, value) in seen {
            let larger = score.max(most);
            let (before, share) = ((most - larger).exp(), (score - larger).exp());
            all = all * before + share;
            weighed = weighed * before + share * value;
            most = larger;
        }
        weighed / all
    }

    fn fork(&self, memory: &mut dyn Memory, layers: usize, tokens: usize, from: usize, to: usize) {
        for layer in 0..layers {
            for position in 0..tokens {
                let (key, value) = memory.at(layer, from, position);
                let (key, value) = (key.to_vec(), value.to_vec());
                // Which token it was, a memory does not ask.
                memory.keep(layer, &Row { text: to, position, token: 0 }, &key, &value);
            }
        }
    }

    fn min_p(&self, candidates: Vec<(u32, f32)>, least: f32) -> Vec<(u32, f32)> {
        let most = candidates.iter().fold(0f32, |most, (_, share)| most.max(*share));
        let left: Vec<_> = candidates.into_iter().filter(|(_, share)| *share >= least * most).collect();
        let all: f32 = left.iter().map(|(_, share)| share).sum();
        left.into_iter().map(|(id, share)| (id, share / all)).collect()
    }

    fn batches(&self, lengths: &[usize], places: usize) -> Vec<Vec<usize>> {
        let mut texts: Vec<usize> = (0..lengths.len()).collect();
        texts.sort_by_key(|&text| std::cmp::Reverse(lengths[text]));
        texts.chunks(places).map(<[usize]>::to_vec).collect()
    }

    fn names(&self, tokens: &[u32]) -> Vec<u64> {
        let mut before = 0u64;
        let name = |block: &[u32]| {
            let mut hasher = DefaultHasher::new();
            (before, block).hash(&mut hasher);
            before = hasher.finish();
            before
        };
        tokens.chunks_exact(BLOCK).map(name).collect()
    }

    fn round(&self, weights: &[f32], group: usize) -> (Vec<i8>, Vec<f32>) {
        let scale = |weights: &[f32]| weights.iter().fold(1e-12f32, |most, weight| most.max(weight.abs())) / 127.0;
        let scales: Vec<f32> = weights.chunks(group).map(scale).collect();
        let bytes = weights.iter().enumerate().map(|(i, weight)| (weight / scales[i / group]).round() as i8).collect();
        (bytes, scales)
    }

    fn parts(&self, outputs: usize, threads: usize) -> Vec<Range<usize>> {
        (0..threads).map(|thread| outputs * thread / threads..outputs * (thread + 1) / threads).collect()
    }

    fn all_reduce(&self, wires: &mut Wires) {
        let (world, length) = (wires.world(), wires.length());
        let own = |rank: usize| length * rank / world..length * (rank + 1) / world;
        for reader in 0..world {
            let mut sum = vec![0.0; own(reader).len()];
            for rank in 0..world {
                sum.iter_mut().zip(wires.read(reader, rank, own(reader))).for_each(|(sum, x)| *sum += x);
            }
            wires.write(reader, own(reader).start, &sum);
        }
        for reader in 0..world {
            for rank in (0..world).filter(|&rank| rank != reader) {
                let sum = wires.read(reader, rank, own(rank));
                wires.write(reader, own(rank).start, &sum);
            }
        }
    }

    fn order(&self, clients: &[&str]) -> Vec<usize> {
        // How many of the same client came before each.
        let turn =
            |(request, client): (usize, &&str)| clients[..request].iter().filter(|other| *other == client).count();
        let turns: Vec<usize> = clients.iter().enumerate().map(turn).collect();
        let mut order: Vec<usize> = (0..clients.len()).collect();
        order.sort_by_key(|&request| turns[request]);
        order
    }

    fn tell(&self, pieces: &[&str], stop: &str) -> Vec<String> {
        let (mut held, mut is_over) = (String::new(), false);
        let mut told = Vec::new();
        for piece in pieces {
            held += if is_over { "" } else { *piece };
            if let Some(at) = held.find(stop) {
                is_over = true;
                held.truncate(at);
                told.push(mem::take(&mut held));
                continue;
            }
            let begins = |&length: &usize| stop.is_char_boundary(length) && held.ends_with(&stop[..length]);
            let begun = (0..stop.len()).rev().find(begins).unwrap_or(0);
            let rest = held.split_off(held.len() - begun);
            told.push(mem::replace(&mut held, rest));
        }
        told.push(held);
        told
    }
}
