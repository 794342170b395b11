//! What blocks, pieces of prompts and the prefix cache bring: shown by memory, by gaps between tokens, by the first token.

use std::time::Instant;

use anyhow::Context;
use nanoinfer_launch::{BLOCK_TOKENS, ClusterConfig, request::Request};

use crate::{
    lesson::{
        figure::{Figure, Row, same, text},
        words::{bytes, ms, times},
    },
    running::{self, Running, all_ended, in_turns, median, medians, token_times},
};

/// Texts of the figure about memory.
const TEXTS: usize = 24;
/// Texts that are being written while prompts arrive.
const WRITERS: usize = 4;
/// Prompts that arrive together.
const PROMPTS: usize = 16;
/// Budgets of new tokens a step.
const BUDGETS: [usize; 4] = [4096, 512, 128, 32];

/// KV memory of many texts of different lengths, at its highest.
pub(super) fn paged_blocks(base: &ClusterConfig) -> anyhow::Result<Figure> {
    let running = Running::start(base, |config| config.max_seqs = TEXTS)?;
    let n_positions = running.plan.model.shape.context;
    // Lengths from a sixteenth to the whole.
    let request = |i: usize| {
        let whole = (n_positions * (1 + i % 16) / 16).max(8);
        running.request(whole * 3 / 4, whole / 4)
    };
    let events = running.submit((0..TEXTS).map(request))?;
    let history = running.handle().status().history();
    let mut changes = history.changes();
    let (mut held, mut written, mut texts) = (0, 0, 0);
    running.block_on(async {
        let all = all_ended(events);
        tokio::pin!(all);
        loop {
            tokio::select! {
                done = &mut all => return done,
                Ok(()) = changes.changed() => {
                    let sequences = history.now().sequences;
                    let blocks = sequences.values().map(|sequence| sequence.blocks.len()).sum();
                    if blocks > held {
                        held = blocks;
                        written = sequences.values().map(|sequence| sequence.computed).sum();
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
        (text!("a whole context for each text", "每条文本预留整个上下文"), reserved),
        (text!("blocks held", "实际持有的块"), blocks),
        (text!("positions written", "已写入的位置"), written as f64),
    ];
    let row = |(label, positions): (_, f64)| {
        Row::new(label, [format!("{positions:.0}"), bytes(positions * position_bytes)]).with_bar(positions)
    };
    let figure = Figure::new(
        "2.blocks",
        text!("KV memory of {texts} texts of different lengths", "{texts} 条不同长度文本的 KV 内存"),
        "KV cache = KV 缓存 | positions = 位置数 | memory = 内存",
        rows.map(row),
    );
    Ok(figure.with_facts([
        ("2.block", BLOCK_TOKENS.to_string()),
        ("2.blocks_gain", times(reserved / blocks)),
        ("2.blocks_waste", format!("{:.0} %", (1.0 - written as f64 / blocks) * 100.0)),
    ]))
}

/// Gaps in texts being written while prompts arrive, by the most new tokens of a step.
pub(super) fn chunked_prefill(base: &ClusterConfig, rounds: u32) -> anyhow::Result<Figure> {
    let samples = in_turns(rounds, &BUDGETS, |&budget| {
        let change = |config: &mut ClusterConfig| {
            config.max_seqs = config.max_seqs.clamp(WRITERS + 1, budget);
            config.max_batched_tokens = budget;
        };
        Running::during(base, change, prefill_beside_writers)
    })?;
    let row = |(budget, samples): (usize, Vec<[f64; 2]>)| {
        let [gap, prompts] = medians(&samples);
        Row::new(same(format!("`--max-batched-tokens {budget}`")), [ms(gap), ms(prompts)]).with_bar(gap)
    };
    Ok(Figure::new(
        "2.pieces",
        text!(
            "{PROMPTS} long prompts arrive while {WRITERS} texts are being written (ms)",
            "{WRITERS} 条文本正在生成时，{PROMPTS} 条长提示词同时到达（毫秒）"
        ),
        "most new tokens in a step = 一步最多的新 token | \
            longest gap between two tokens = 两个 token 间最长的间隔 | \
            until all prompts are read = 读完所有提示词",
        BUDGETS.into_iter().zip(samples).map(row),
    )
    .logarithmic())
}

/// The longest gap of a text being written while prompts arrive, and the seconds until all of these have been read.
fn prefill_beside_writers(running: &Running) -> anyhow::Result<[f64; 2]> {
    let n_positions = running.plan.model.shape.context;
    let submit = |prompt, tokens, count| running.submit((0..count).map(|_| running.request(prompt, tokens)));
    // The first large step finds its buffers' memory; it is not what is asked here.
    running.block_on(all_ended(submit(n_positions - 8, 1, PROMPTS)?))?;
    let mut writers = submit(8, n_positions - 8, WRITERS)?;
    let mut watched = writers.pop().context("there is a writer")?;
    running.block_on(async {
        // All of them are being written once the youngest has a token.
        watched.next().await;
        let begun = Instant::now();
        let arriving = submit(n_positions - 8, 1, PROMPTS)?;
        let first_tokens = async {
            all_ended(arriving).await?;
            anyhow::Ok(begun.elapsed())
        };
        let (times, prompts) = tokio::join!(token_times(watched), first_tokens);
        let gap = times?.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        Ok([gap.as_secs_f64(), prompts?.as_secs_f64()])
    })
}

/// Time to the first token of a prompt whose beginning was seen before.
pub(super) fn prefix_cache(base: &ClusterConfig) -> anyhow::Result<Figure> {
    const ASKED: usize = 9;
    let n_positions = running::plan(base)?.model.shape.context;
    let (shared, own) = ((n_positions * 3 / 4).saturating_sub(16).max(1), 16.min(n_positions / 4));
    let first_token_s = |has_cache| {
        Running::during(
            base,
            |config| config.prefix_cache = has_cache,
            |running| {
                let beginning = running.request(shared, 1).prompt;
                let mut seconds = Vec::new();
                for _ in 0..ASKED {
                    let ending = running.request(own, 1);
                    let prompt = [beginning.clone(), ending.prompt.clone()].concat();
                    let begun = Instant::now();
                    let events =
                        running.handle().submit(Request { prompt, ..ending }).context("the engine takes no more")?;
                    running.block_on(token_times(events))?;
                    seconds.push(begun.elapsed().as_secs_f64());
                }
                // The first asks what nobody has asked before.
                Ok(median(seconds.split_off(1)))
            },
        )
    };
    let (computed, found) = (first_token_s(false)?, first_token_s(true)?);
    let row = |label, switch: &str, s| Row::new(label, [switch.to_owned(), ms(s)]).with_bar(s);
    let figure = Figure::new(
        "2.prefix",
        text!(
            "First token after {shared} tokens that were seen before and {own} new ones (ms)",
            "{shared} 个见过的 token 加 {own} 个新 token 之后的首个 token（毫秒）"
        ),
        "the beginning is = 开头 | switch = 开关 | first token = 首个 token",
        [
            row(text!("computed from its start", "从头计算"), "`--no-prefix-cache`", computed),
            row(text!("found in the cache", "命中缓存"), "", found),
        ],
    );
    Ok(figure.with_facts([("2.prefix_gain", times(computed / found))]))
}
