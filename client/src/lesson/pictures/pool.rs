//! The KV pool while three texts are written, two of which begin alike: the engine's own block tables at one moment.

use std::time::Duration;

use anyhow::{Context, anyhow};
use nanoinfer_launch::{BLOCK_TOKENS, ClusterConfig, history::LiveBlocks, request::Request};

use super::svg::{Svg, class};
use crate::running::{Running, token_times};

/// How often the moment is waited for, and for how long.
const TRIES: usize = 10;
const PATIENCE: Duration = Duration::from_secs(2);
/// Blocks of the pool that are drawn.
const SHOWN: usize = 24;
const CELL: f64 = 26.0;
/// Of a block in its cell.
const SIZE: f64 = CELL - 4.0;
const LEFT: f64 = 210.0;
const WIDTH: f64 = LEFT + SHOWN as f64 * CELL + 12.0;
/// Tokens that two of the texts have in common.
const SHARED: usize = 64;

pub(super) fn draw(base: &ClusterConfig) -> anyhow::Result<String> {
    let running = Running::start(base, |config| config.prefix_cache = true)?;
    let beginning = running.request(SHARED, 1).prompt;
    let with_beginning = |own: usize, tokens: usize| {
        let request = running.request(own, tokens);
        let prompt = [beginning.clone(), request.prompt.clone()].concat();
        Request { prompt, ..request }
    };
    let history = running.handle().status().history();
    let mut changes = history.changes();
    let sequences = running.block_on(async {
        // Its blocks are known once it is done.
        let first = running.handle().submit(with_beginning(1, 1)).context("the engine takes no more")?;
        token_times(first).await?;
        let is_moment = |live: &LiveBlocks| {
            live.sequences.len() == 3 && live.sequences.values().all(|s| s.tokens >= s.prompt_tokens + 12)
        };
        for _ in 0..TRIES {
            let requests = vec![with_beginning(9, 100), with_beginning(30, 100), running.request(40, 100)];
            let _writing = running.submit(requests)?;
            // A busy machine may let it pass unseen.
            let moment = async {
                loop {
                    changes.changed().await?;
                    let live = history.now();
                    if is_moment(&live) {
                        return anyhow::Ok(live.sequences.into_values().collect::<Vec<_>>());
                    }
                }
            };
            if let Ok(Ok(sequences)) = tokio::time::timeout(PATIENCE, moment).await {
                return Ok(sequences);
            }
        }
        Err(anyhow!("the texts were never seen while they were written"))
    })?;
    running.shut_down();

    let mut svg = Svg::new(WIDTH);
    let (pool_y, first_y) = (150.0, 22.0);
    for (i, sequence) in sequences.iter().enumerate() {
        let y = first_y + i as f64 * 38.0;
        let words = format!("text {}: {} positions", ["A", "B", "C"][i % 3], sequence.computed);
        svg.text("", "start", (12.0, y + 15.0), &words);
        for (at, &block) in sequence.blocks.iter().enumerate().filter(|(_, block)| (**block as usize) < SHOWN) {
            let x = LEFT + at as f64 * CELL;
            let title = format!("positions {} to {}", at * BLOCK_TOKENS, (at + 1) * BLOCK_TOKENS - 1);
            svg.rect(class(i), (x, y), (SIZE, 20.0), &title);
            svg.text("", "middle", (x + SIZE / 2.0, y + 15.0), &block.to_string());
        }
    }
    svg.text("", "start", (12.0, pool_y + 15.0), "the pool's first blocks");
    for block in 0..SHOWN as u32 {
        let (x, y) = (LEFT + f64::from(block) * CELL, pool_y);
        svg.rect("empty", (x, y), (SIZE, SIZE), "");
        let holders: Vec<usize> = (0..sequences.len()).filter(|&i| sequences[i].blocks.contains(&block)).collect();
        let filled = holders.first().map_or(0.0, |&holder| {
            let sequence = &sequences[holder];
            let at = sequence.blocks.iter().position(|&other| other == block).unwrap_or(0);
            (sequence.computed.saturating_sub(at * BLOCK_TOKENS) as f64 / BLOCK_TOKENS as f64).min(1.0)
        });
        // A part for each holder, side by side; full from the bottom as far as positions are written.
        for (part, &holder) in holders.iter().enumerate() {
            let width = SIZE / holders.len() as f64;
            svg.rect(class(holder), (x + part as f64 * width, y + SIZE * (1.0 - filled)), (width, SIZE * filled), "");
        }
        if holders.len() > 1 {
            svg.rect("frame", (x, y), (SIZE, SIZE), "shared");
        }
        svg.text("soft", "middle", (x + SIZE / 2.0, y + SIZE + 16.0), &block.to_string());
    }
    let words = format!("a block holds {BLOCK_TOKENS} positions; framed: held by two texts that begin alike");
    svg.text("soft", "start", (LEFT, pool_y + CELL + 36.0), &words);
    Ok(svg.finish("Block tables of three texts and the KV pool"))
}
