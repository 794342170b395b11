//! Step 9. One model on several ranks: each has some heads and some columns of the MLP, and twice a layer they add up what they have.
//!
//! Ranks are threads here, as nothing else would fit a page; they share nothing but the sums, so they could be processes, or hosts.
//! Invariant: all add in the order of ranks, so that all have the same bits.

use std::{
    path::Path,
    sync::{
        Barrier, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use anyhow::Result;

use crate::{
    cache::Cache,
    model::{Model, Packing, Part, Sizes},
    pass::{Row, pass, unseen},
};

/// What of a model a rank holds: as even a share as whole heads allow.
pub fn part(sizes: &Sizes, rank: usize, world: usize) -> Part {
    let share = |all: usize| all * rank / world..all * (rank + 1) / world;
    Part { heads: share(sizes.heads), inner: share(4 * sizes.width), vocab: share(sizes.vocab), adds_bias: rank == 0 }
}

/// Where ranks meet.
#[derive(Debug)]
pub struct AllReduce {
    summands: Vec<Mutex<Vec<f32>>>,
    all_there: Barrier,
}

impl AllReduce {
    /// For so many.
    pub fn new(world: usize) -> Self {
        Self { summands: (0..world).map(|_| Mutex::default()).collect(), all_there: Barrier::new(world) }
    }

    /// Replaces what each brings by the sum of all.
    pub fn add(&self, rank: usize, values: &mut Vec<f32>) {
        let of = |rank: usize| self.summands[rank].lock().expect("nobody panics with a summand in hand");
        of(rank).clone_from(values);
        self.all_there.wait();
        values.fill(0.0);
        for rank in 0..self.summands.len() {
            values.iter_mut().zip(&*of(rank)).for_each(|(sum, x)| *sum += x);
        }
        // Nobody brings the next before all have read this one.
        self.all_there.wait();
    }
}

/// A model on several ranks: the same rows to each, the logits of all side by side.
pub struct Ranks {
    /// To each.
    plans: Vec<Sender<Vec<Row>>>,
    answers: Vec<Receiver<Vec<f32>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Ranks {
    /// Loads a folder's model on `world` ranks, each its own part.
    ///
    /// # Errors
    /// When a rank cannot load.
    pub fn start(folder: &Path, world: usize, packing: Packing<'_>) -> Result<Self> {
        let models: Vec<Model> = (0..world)
            .map(|rank| Model::load_part(folder, |sizes| part(sizes, rank, world), packing))
            .collect::<Result<_>>()?;
        let reduce = std::sync::Arc::new(AllReduce::new(world));
        let mut ranks = Self { plans: Vec::new(), answers: Vec::new(), threads: Vec::new() };
        for (rank, model) in models.into_iter().enumerate() {
            let ((plan, plans), (answer, answers)) = (channel::<Vec<Row>>(), channel());
            let reduce = reduce.clone();
            ranks.threads.push(thread::spawn(move || {
                let mut cache = Cache::default();
                for rows in plans {
                    let logits = pass(&model, &rows, &mut cache, &mut |x| reduce.add(rank, x), &mut unseen);
                    // Who asked may have left.
                    let _ = answer.send(logits);
                }
            }));
            ranks.plans.push(plan);
            ranks.answers.push(answers);
        }
        Ok(ranks)
    }

    /// Logits `[rows][vocab]`.
    pub fn step(&self, rows: &[Row]) -> Vec<f32> {
        self.plans.iter().for_each(|plan| plan.send(rows.to_vec()).expect("a rank lives as long as this"));
        let slices: Vec<Vec<f32>> = self.answers.iter().map(|answer| answer.recv().expect("a rank answers")).collect();
        let row = |r: usize| {
            slices
                .iter()
                .flat_map(move |slice| &slice[r * slice.len() / rows.len()..(r + 1) * slice.len() / rows.len()])
        };
        (0..rows.len()).flat_map(row).copied().collect()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.plans.clear();
        self.threads.drain(..).for_each(|rank| drop(rank.join()));
    }
}
