//! Lesson 1: from checkpoint to conversation, measured on the 100-line program itself (`worker/reference/examples/conversation.rs`).

use std::{path::Path, time::Instant};

use anyhow::{Context, anyhow, bail};
use nanoinfer_launch::{ClusterConfig, ModelShape, plan::Plan};
use tokenizers::Tokenizer;

use super::{
    figure::{Figure, Results, Row, same, text},
    words::{digits, machine, ms, times},
};
use crate::{
    conversation::{Cache, Gpt2},
    running::{self, median},
};

const QUESTION: &str = "What is a cat?";
/// Alternatives that are shown.
const NEXT: usize = 5;
/// Lengths of text at which a token is timed, those that fit the model.
const LENGTHS: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];
/// Of each timing.
const REPETITIONS: usize = 9;

/// The 100-line program's model and tokenizer.
pub(super) struct Program {
    pub(super) model: Gpt2,
    tokenizer: Tokenizer,
    pub(super) shape: ModelShape,
}

impl Program {
    /// Loads what `plan` would serve.
    pub(super) fn load(plan: &Plan) -> anyhow::Result<Self> {
        let (folder, family) = (&plan.model.folder, plan.model.shape.model_type());
        if family != "gpt2" {
            bail!(
                "the 100-line program of this lesson is a GPT-2, and {} is a {family} model\n  hint: --model gpt2, or lesson 3",
                plan.model.name
            );
        }
        let model = Gpt2::load(folder).map_err(|error| anyhow!("{error}")).with_context(|| {
            format!(
                "the 100-line program reads model.safetensors and cannot load {}\n  hint: nanoinfer convert",
                folder.display()
            )
        })?;
        let file = Path::new(folder).join("tokenizer.json");
        let mut tokenizer =
            Tokenizer::from_file(&file).map_err(|error| anyhow!("cannot read {}: {error}", file.display()))?;
        // Settings of batches, which the server does not obey either.
        tokenizer.with_padding(None).with_truncation(None).map_err(|error| anyhow!("{error}"))?;
        Ok(Self { model, tokenizer, shape: plan.model.shape.clone() })
    }

    /// Seconds of the token that follows `ids`, with the keys and values of all but the last at hand or not; the median of
    /// `repetitions`, after one to warm up.
    pub(super) fn token_s(&self, ids: &[u32], has_cache: bool, repetitions: usize) -> anyhow::Result<f64> {
        let mut cache = Cache::new();
        if has_cache {
            self.model.next(&ids[..ids.len() - 1], &mut cache)?;
        }
        let run = |mut cache: Cache| -> anyhow::Result<f64> {
            let begun = Instant::now();
            self.model.next(ids, &mut cache)?.to_vec1::<f32>()?;
            Ok(begun.elapsed().as_secs_f64())
        };
        // Tensors are shared, so that a copy of the cache is a copy of names.
        run(cache.clone())?;
        Ok(median((0..repetitions).map(|_| run(cache.clone())).collect::<anyhow::Result<_>>()?))
    }

    /// Some text of `length` tokens.
    pub(super) fn ids(&self, length: usize) -> Vec<u32> {
        (0..length).map(|i| (i * 7919 % self.shape.vocab_size) as u32).collect()
    }
}

pub(super) fn run(base: &ClusterConfig) -> anyhow::Result<Results> {
    let plan = running::plan(base)?;
    let program = Program::load(&plan)?;
    let prompt = format!("User: {QUESTION}\nAssistant:");
    let encoded = program.tokenizer.encode(prompt, false).map_err(|error| anyhow!("{error}"))?;
    let ids = encoded.get_ids();
    let (next, difference) = next(&program, ids)?;
    let name = &plan.model.name;
    Ok(Results {
        number: 1,
        title: text!("from checkpoint to conversation", "从检查点到对话"),
        conditions: text!("{name}; the 100-line program, f32; {}", "{name}；百行程序，f32；{}", machine()),
        figures: vec![tokens(&program, ids)?, weights(&program.shape), next, growth(&program)?],
        facts: vec![("1.difference", format!("{difference:.0e}"))],
        listings: Vec::new(),
    })
}

/// What the tokenizer makes of the prompt.
fn tokens(program: &Program, ids: &[u32]) -> anyhow::Result<Figure> {
    let row = |(position, &id): (usize, &u32)| {
        let spelled = program.tokenizer.decode(&[id], false).map_err(|error| anyhow!("{error}"))?;
        Ok(Row::new(same(position.to_string()), [id.to_string(), format!("`{spelled:?}`")]))
    };
    let figure = Figure::new(
        "1.tokens",
        text!("The tokens of \"{QUESTION}\", as a chat puts it", "提示词切成的 token"),
        "position = 位置 | id | text = 文本",
        ids.iter().enumerate().map(row).collect::<anyhow::Result<Vec<_>>>()?,
    );
    Ok(figure.with_facts([("1.prompt_tokens", ids.len().to_string())]))
}

/// Where the parameters are.
fn weights(shape: &ModelShape) -> Figure {
    let (c, f, layers) = (shape.width, shape.mlp.inner, shape.layers);
    let parts = [
        (
            text!("token embedding, which is also the last product", "token 嵌入，也是最后一次乘法"),
            shape.vocab_size * c,
        ),
        (text!("position embedding", "位置嵌入"), shape.context * c),
        (text!("attention, all layers", "注意力（所有层）"), layers * (4 * c * c + 4 * c)),
        (text!("MLP, all layers", "MLP（所有层）"), layers * (2 * c * f + f + c)),
        (same("LayerNorm"), (2 * layers + 1) * 2 * c),
    ];
    let all: usize = parts.iter().map(|(_, count)| count).sum();
    let row = |(label, count): (_, usize)| {
        let share = count as f64 / all as f64;
        Row::new(label, [format!("{:.2}", count as f64 / 1e6), format!("{:.1} %", share * 100.0)]).with_bar(share)
    };
    Figure::new(
        "1.weights",
        text!("Where the parameters are", "参数在哪里"),
        "part = 部分 | millions = 百万 | share = 占比",
        parts.into_iter().map(row),
    )
    .with_facts([
        ("1.vocab", shape.vocab_size.to_string()),
        ("1.width", c.to_string()),
        ("1.layers", layers.to_string()),
        ("1.heads", shape.attention.heads.to_string()),
        ("1.head_width", shape.attention.head_dim.to_string()),
        ("1.positions", shape.context.to_string()),
        ("1.parameters", format!("{:.1}", shape.parameters() as f64 / 1e6)),
    ])
}

/// The likeliest tokens after the prompt; and how much the logits differ at most with the cache, relative to the largest.
fn next(program: &Program, ids: &[u32]) -> anyhow::Result<(Figure, f64)> {
    let logits: Vec<f32> = program.model.next(ids, &mut Cache::new())?.to_vec1()?;
    let mut cache = Cache::new();
    for end in 1..ids.len() {
        program.model.next(&ids[..end], &mut cache)?;
    }
    let cached: Vec<f32> = program.model.next(ids, &mut cache)?.to_vec1()?;
    let largest = logits.iter().fold(0f32, |most, x| most.max(x.abs()));
    let difference = logits.iter().zip(&cached).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest;

    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let row = |&id: &usize| {
        let probability = f64::from(logits[id] - max).exp() / sum;
        let spelled = program.tokenizer.decode(&[id as u32], false).map_err(|error| anyhow!("{error}"))?;
        let cells = [format!("{:.2}", logits[id]), format!("{:.2} %", probability * 100.0)];
        Ok(Row::new(same(format!("`{spelled:?}`")), cells).with_bar(probability))
    };
    let figure = Figure::new(
        "1.next",
        text!("The likeliest tokens after the prompt", "提示词之后最可能的 token"),
        "token | logit | probability = 概率",
        order.iter().take(NEXT).map(row).collect::<anyhow::Result<Vec<_>>>()?,
    );
    Ok((figure, difference.into()))
}

/// Time of one more token, by the length of the text before it.
fn growth(program: &Program) -> anyhow::Result<Figure> {
    let mut rows = Vec::new();
    let (mut gain, mut longest) = (1.0, 0);
    for length in LENGTHS.into_iter().filter(|&length| length <= program.shape.context) {
        let ids = program.ids(length);
        let (without, with) = (program.token_s(&ids, false, REPETITIONS)?, program.token_s(&ids, true, REPETITIONS)?);
        (gain, longest) = (without / with, length);
        let cells = [ms(without), ms(with), times(gain), digits(1.0 / with)];
        rows.push(Row::new(same(length.to_string()), cells).with_bar(without));
    }
    let figure = Figure::new(
        "1.growth",
        text!("Milliseconds of one more token", "再生成一个 token 的毫秒数"),
        "tokens of text = 文本的 token 数 | `--no-cache` | with a KV cache = 有 KV 缓存 | gain = 倍数 | \
         tokens/s with it = 有缓存时每秒 token",
        rows,
    );
    // Of the cache at the longest.
    Ok(figure.with_facts([("1.longest", longest.to_string()), ("1.gain", times(gain))]))
}
