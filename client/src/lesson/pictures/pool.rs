//! The KV pool while three texts are written, two of which begin alike: the engine's own block tables at one moment.

use std::time::Duration;

use anyhow::{Context, anyhow};
use nanoinfer_launch::{BLOCK_TOKENS, ClusterConfig, request::Request, status::LiveBlocks};

use super::svg::{Svg, class};
use crate::running::{Running, token_times};

/// How often the moment is waited for, and for how long.
const TRIES: usize = 10;
const PATIENCE: Duration = Duration::from_secs(2);
/// Blocks of the pool that are drawn.
const SHOWN: usize = 24;
const CELL: f64 = 26.0;
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
    let mut live = running.handle().status().live().subscribe();
    let sequences = running.block_on(async {
        // Its blocks are known once it is done.
        let first = running.handle().submit(with_beginning(1, 1)).context("the engine takes no more")?;
        token_times(first).await?;
        let is_moment = |live: &LiveBlocks| {
            live.sequences.len() == 3 && live.sequences.iter().all(|s| s.tokens >= s.prompt_tokens + 12)
        };
        for _ in 0..TRIES {
            let requests = vec![with_beginning(9, 100), with_beginning(30, 100), running.request(40, 100)];
            let _writing = running.submit(requests)?;
            // A busy machine may let it pass unseen.
            if let Ok(Ok(moment)) = tokio::time::timeout(PATIENCE, live.wait_for(is_moment)).await {
                return Ok(moment.sequences.clone());
            }
        }
        Err(anyhow!("the texts were never seen while they were written"))
    })?;
    running.shut_down();

    let mut svg = Svg::new(WIDTH);
    let place = |block: u32, y: f64| (LEFT + block as f64 * CELL, y);
    let (pool_y, first_y) = (150.0, 22.0);
    for (i, sequence) in sequences.iter().enumerate() {
        let y = first_y + i as f64 * 38.0;
        let words = format!("text {}: {} positions", ["A", "B", "C"][i % 3], sequence.computed);
        svg.text("", "start", (12.0, y + 15.0), &words);
        for (at, &block) in sequence.blocks.iter().enumerate().filter(|(_, block)| (**block as usize) < SHOWN) {
            let x = LEFT + at as f64 * CELL;
            svg.rect(
                class(i),
                (x, y),
                (CELL - 4.0, 20.0),
                &format!("positions {} to {}", at * BLOCK_TOKENS, (at + 1) * BLOCK_TOKENS - 1),
            );
            svg.text("", "middle", (x + (CELL - 4.0) / 2.0, y + 15.0), &block.to_string());
        }
    }
    svg.text("", "start", (12.0, pool_y + 15.0), "the pool's first blocks");
    for block in 0..SHOWN as u32 {
        let (x, y) = place(block, pool_y);
        let size = CELL - 4.0;
        svg.rect("empty", (x, y), (size, size), "");
        let holders: Vec<usize> = (0..sequences.len()).filter(|&i| sequences[i].blocks.contains(&block)).collect();
        let Some(&holder) = holders.first() else {
            svg.text("soft", "middle", (x + size / 2.0, y + size + 16.0), &block.to_string());
            continue;
        };
        let sequence = &sequences[holder];
        let at = sequence.blocks.iter().position(|&other| other == block).unwrap_or(0);
        let filled = (sequence.computed.saturating_sub(at * BLOCK_TOKENS) as f64 / BLOCK_TOKENS as f64).min(1.0);
        // A part for each holder, side by side; full from the bottom as far as positions are written.
        for (part, &holder) in holders.iter().enumerate() {
            let width = size / holders.len() as f64;
            svg.rect(class(holder), (x + part as f64 * width, y + size * (1.0 - filled)), (width, size * filled), "");
        }
        if holders.len() > 1 {
            svg.rect("frame", (x, y), (size, size), "shared");
        }
        svg.text("soft", "middle", (x + size / 2.0, y + size + 16.0), &block.to_string());
    }
    let words = format!("a block holds {BLOCK_TOKENS} positions; framed: held by two texts that begin alike");
    svg.text("soft", "start", (LEFT, pool_y + CELL + 36.0), &words);
    Ok(svg.finish("Block tables of three texts and the KV pool"))
}
