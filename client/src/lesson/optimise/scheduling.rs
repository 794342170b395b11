//! What blocks, pieces of prompts and the prefix cache bring: shown by memory, by gaps between tokens, by the first token.

use std::time::Instant;

use anyhow::Context;
use nanoinfer_launch::{BLOCK_TOKENS, ClusterConfig, request::Request};

use crate::{
    lesson::{
        figure::{Facts, Figure, Row, same, text},
        words::{bytes, ms, times},
    },
    running::{Running, median, token_times},
};

/// Texts of the figure about memory.
const TEXTS: usize = 24;
/// Texts that are being written while prompts arrive.
const WRITERS: usize = 4;
/// Prompts that arrive together.
const PROMPTS: usize = 16;
/// Budgets of new tokens a step.
const BUDGETS: [usize; 4] = [4096, 512, 128, 32];

pub(super) fn figures(base: &ClusterConfig, rounds: u32) -> anyhow::Result<(Vec<Figure>, Facts)> {
    let (memory, mut facts) = paged_blocks(base)?;
    let pieces = chunked_prefill(base, rounds)?;
    let (prefix, told) = prefix_cache(base)?;
    facts.extend(told);
    Ok((vec![memory, pieces, prefix], facts))
}

/// KV memory of many texts of different lengths, at its highest.
fn paged_blocks(base: &ClusterConfig) -> anyhow::Result<(Figure, Facts)> {
    let running = Running::start(base, |config| config.max_seqs = TEXTS)?;
    let n_positions = running.plan.model.shape.context;
    // Lengths from a sixteenth to the whole.
    let request = |i: usize| {
        let whole = (n_positions * (1 + i % 16) / 16).max(8);
        running.request(whole * 3 / 4, whole / 4)
    };
    let events = running.submit((0..TEXTS).map(request))?;
    let mut live = running.handle().status().live().subscribe();
    let (mut held, mut written, mut texts) = (0, 0, 0);
    running.block_on(async {
        let all = async {
            for events in events {
                token_times(events).await?;
            }
            anyhow::Ok(())
        };
        tokio::pin!(all);
        loop {
            tokio::select! {
                done = &mut all => return done,
                Ok(()) = live.changed() => {
                    let sequences = &live.borrow_and_update().sequences;
                    let blocks = sequences.iter().map(|sequence| sequence.blocks.len()).sum();
                    if blocks > held {
                        held = blocks;
                        written = sequences.iter().map(|sequence| sequence.computed).sum();
                        texts = sequences.len();
                    }
                }
            }
        }
    })?;
    let rank = &running.plan.memory[0];
    let position_bytes = rank.kv as f64 / (running.plan.kv_blocks * BLOCK_TOKENS) as f64;
    running.shut_down();
    let reserved = (texts * n_positions) as f64;
    let blocks = (held * BLOCK_TOKENS) as f64;
    let rows = [
        (text("a whole context for each text", "每条文本预留整个上下文"), reserved),
        (text("blocks held", "实际持有的块"), blocks),
        (text("positions written", "已写入的位置"), written as f64),
    ];
    let row = |(label, positions): (_, f64)| {
        Row::new(label, [format!("{positions:.0}"), bytes(positions * position_bytes)]).with_bar(positions)
    };
    let figure = Figure::new(
        "2.blocks",
        text(format!("KV memory of {texts} texts of different lengths"), format!("{texts} 条不同长度文本的 KV 内存")),
        "KV cache = KV 缓存 | positions = 位置数 | memory = 内存",
        rows.map(row).into(),
    );
    let facts = vec![
        ("2.block", BLOCK_TOKENS.to_string()),
        ("2.blocks_gain", times(reserved / blocks)),
        ("2.blocks_waste", format!("{:.0} %", (1.0 - written as f64 / blocks) * 100.0)),
    ];
    Ok((figure, facts))
}

/// Gaps in texts being written while prompts arrive, by the most new tokens of a step.
fn chunked_prefill(base: &ClusterConfig, rounds: u32) -> anyhow::Result<Figure> {
    let mut samples = vec![(Vec::new(), Vec::new()); BUDGETS.len()];
    for _ in 0..rounds {
        for (budget, (gaps, prompts)) in BUDGETS.into_iter().zip(&mut samples) {
            let running = Running::start(base, |config| {
                config.max_seqs = config.max_seqs.clamp(WRITERS + 1, budget);
                config.max_batched_tokens = budget;
            })?;
            let n_positions = running.plan.model.shape.context;
            let submit = |prompt, tokens, count| running.submit((0..count).map(|_| running.request(prompt, tokens)));
            // The first large step finds its buffers' memory; it is not what is asked here.
            for events in submit(n_positions - 8, 1, PROMPTS)? {
                running.block_on(token_times(events))?;
            }
            let mut writers = submit(8, n_positions - 8, WRITERS)?;
            let mut watched = writers.pop().context("there is a writer")?;
            let (gap, prompts_s) = running.block_on(async {
                // All of them are being written once the youngest has a token.
                watched.next().await;
                let begun = Instant::now();
                let arriving = submit(n_positions - 8, 1, PROMPTS)?;
                let first_tokens = async {
                    for events in arriving {
                        token_times(events).await?;
                    }
                    anyhow::Ok(begun.elapsed())
                };
                let (times, prompts) = tokio::join!(token_times(watched), first_tokens);
                let times = times?;
                let gap = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
                anyhow::Ok((gap.as_secs_f64(), prompts?.as_secs_f64()))
            })?;
            drop(writers);
            running.shut_down();
            gaps.push(gap);
            prompts.push(prompts_s);
        }
    }
    let row = |(budget, (gaps, prompts)): (usize, (Vec<f64>, Vec<f64>))| {
        let (gap, prompts) = (median(gaps), median(prompts));
        Row::new(same(format!("`--max-batched-tokens {budget}`")), [ms(gap), ms(prompts)]).with_bar(gap)
    };
    Ok(Figure::new(
        "2.pieces",
        text(
            format!("{PROMPTS} long prompts arrive while {WRITERS} texts are being written (ms)"),
            format!("{WRITERS} 条文本正在生成时，{PROMPTS} 条长提示词同时到达（毫秒）"),
        ),
        "most new tokens in a step = 一步最多的新 token | \
            longest gap between two tokens = 两个 token 间最长的间隔 | \
            until all prompts are read = 读完所有提示词",
        BUDGETS.into_iter().zip(samples).map(row).collect(),
    )
    .logarithmic())
}

/// Time to the first token of a prompt whose beginning was seen before.
fn prefix_cache(base: &ClusterConfig) -> anyhow::Result<(Figure, Facts)> {
    const ASKED: usize = 9;
    let mut seconds = Vec::new();
    let mut lengths = (0, 0);
    for prefix_cache in [false, true] {
        let running = Running::start(base, |config| config.prefix_cache = prefix_cache)?;
        let n_positions = running.plan.model.shape.context;
        let (shared, own) = ((n_positions * 3 / 4).saturating_sub(16).max(1), 16.min(n_positions / 4));
        lengths = (shared, own);
        let beginning = running.request(shared, 1).prompt;
        let mut first_tokens = Vec::new();
        for i in 0..ASKED {
            let ending = running.request(own, 1);
            let prompt = [beginning.clone(), ending.prompt.clone()].concat();
            let begun = Instant::now();
            let events = running.handle().submit(Request { prompt, ..ending }).context("the engine takes no more")?;
            running.block_on(token_times(events))?;
            // The first asks what nobody has asked before.
            if i > 0 {
                first_tokens.push(begun.elapsed().as_secs_f64());
            }
        }
        running.shut_down();
        seconds.push(median(first_tokens));
    }
    let labels = [
        (text("computed from its start", "从头计算"), "`--no-prefix-cache`"),
        (text("found in the cache", "命中缓存"), ""),
    ];
    let row = |((label, switch), s): ((_, &str), &f64)| Row::new(label, [switch.to_owned(), ms(*s)]).with_bar(*s);
    let figure = Figure::new(
        "2.prefix",
        text(
            format!("First token after {} tokens that were seen before and {} new ones (ms)", lengths.0, lengths.1),
            format!("{} 个见过的 token 加 {} 个新 token 之后的首个 token（毫秒）", lengths.0, lengths.1),
        ),
        "the beginning is = 开头 | switch = 开关 | first token = 首个 token",
        labels.into_iter().zip(&seconds).map(row).collect(),
    );
    Ok((figure, vec![("2.prefix_gain", times(seconds[0] / seconds[1]))]))
}
