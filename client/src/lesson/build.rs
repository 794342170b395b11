//! Lesson 4: eleven programs, from a token to a server for many, each measured as it is (`docs/learn/steps`).
//!
//! Measures the steps' own functions on the built-in model, and on random weights in the shape of GPT-2, which fit no cache.

mod differences;
pub(super) mod serving;
pub(super) mod subject;

use std::time::Instant;

use anyhow::Context;
use nanoinfer_launch::ClusterConfig;
use nanoinfer_steps::{
    Model, Sizes,
    batch::generate,
    blocks::{BLOCK, Blocks},
    cache::Cache,
    decode, encode, int8,
    model::plain,
    pass::{alone, last, pass, rows_of, unseen},
    ranks,
    sampling::Sampling,
    threads::{Roofline, cut},
};

use self::subject::{POOL, QUESTION, Subject};
use super::{
    figure::{Facts, Figure, Results, Row, Text, same, text},
    words::{bytes, digits, machine, ms, times},
};
use crate::running::{self, median};

/// Lengths of text at which a token is timed.
const LENGTHS: [usize; 3] = [16, 64, 256];
/// Texts of a step.
const BATCHES: [usize; 3] = [1, 8, 32];

pub(super) fn run(base: &ClusterConfig, rounds: u32) -> anyhow::Result<Results> {
    let plan = running::plan(base)?;
    let folder = plan.model.folder.as_path();
    let hint = "  hint: the steps read a GPT-2 in model.safetensors, as the built-in model is";
    let opened =
        folder.to_str().context("the model's folder is no text").and_then(|folder| nanoinfer_steps::open(Some(folder)));
    let (model, tokenizer) = opened.with_context(|| format!("cannot load {}\n{hint}", plan.model.name))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let subject = Subject { folder, model, tokenizer, large: Model::random(Sizes::GPT2, &plain)?, threads, rounds };
    let name = &plan.model.name;
    let millions = 124;
    let figures = vec![
        neighbours(&subject)?,
        looks(&subject)?,
        growth(&subject)?,
        draws(&subject)?,
        batches(&subject),
        blocks(&subject)?,
        smaller(&subject)?,
        roofline(&subject)?,
        shares(&subject)?,
        serving::scheduling(&subject)?,
        serving::clients(&subject)?,
    ];
    Ok(Results {
        number: 4,
        title: text!("eleven steps to a server", "十一步写出一个服务器"),
        conditions: text!(
            "{name}, and random weights in the shape of GPT-2 ({millions} million, \"large\"); the programs of the steps; medians of {rounds} rounds; {}",
            "{name}，以及 GPT-2 尺寸的随机权重（{millions} 百万，“大”）；各步的程序；{rounds} 轮的中位数；{}",
            machine()
        ),
        figures,
        facts: differences::lines(),
        listings: differences::all(),
    })
}

/// What lies near a token's vector.
fn neighbours(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let mut rows = Vec::new();
    for &id in &encode(&subject.tokenizer, "What is a cat?")? {
        let near = subject.model.neighbours(id, 4);
        let near: Vec<String> = near[1..]
            .iter()
            .map(|&(id, cosine)| Ok(format!("{} {cosine:.2}", subject.spelled(id)?)))
            .collect::<anyhow::Result<_>>()?;
        rows.push(Row::new(same(subject.spelled(id)?), [id.to_string(), format!("{} ", near.join(", "))]));
    }
    Ok(Figure::new(
        "4.near",
        text!(
            "Tokens, and those whose vectors point most nearly the same way (cosine)",
            "每个 token，以及向量方向最接近的几个（余弦）"
        ),
        "token | id | nearest = 最近的",
        rows,
    ))
}

/// Where the heads of each layer look from the last token of a prompt.
fn looks(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let ids = subject.prompt()?;
    // Layer, head, position, share: the largest of each head.
    let mut looks: Vec<(usize, usize, usize, f32)> = Vec::new();
    pass(&subject.model, &rows_of(0, &ids, 0), &mut Cache::default(), &mut alone, &mut |layer, head, row, shares| {
        if row.position + 1 == ids.len() {
            let most = (0..shares.len()).max_by(|&a, &b| shares[a].total_cmp(&shares[b])).unwrap_or(0);
            looks.push((layer, head, most, shares[most]));
        }
    });
    looks.sort_by(|a, b| b.3.total_cmp(&a.3));
    let row = |&(layer, head, position, share): &(usize, usize, usize, f32)| {
        let cells = [position.to_string(), subject.spelled(ids[position])?, format!("{:.0} %", share * 100.0)];
        Ok(Row::new(text!("layer {layer}, head {head}", "第 {layer} 层，头 {head}"), cells).with_bar(share.into()))
    };
    Ok(Figure::new(
        "4.looks",
        text!("The most decided heads at the last token of \"{QUESTION}\"", "提示词最后一个 token 处，最坚决的几个头"),
        "head = 头 | looks at position = 看向位置 | token | with a share of = 份额",
        looks.iter().take(6).map(row).collect::<anyhow::Result<Vec<_>>>()?,
    )
    .with_facts([
        ("4.prompt_tokens", ids.len().to_string()),
        ("4.products", (ids.len() * (ids.len() + 1) / 2).to_string()),
    ]))
}

/// A token's time with everything computed again, and with keys and values kept.
fn growth(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let model = &subject.model;
    let mut rows = Vec::new();
    let (mut gain, mut kept) = (1.0, 0);
    for length in LENGTHS {
        let ids = vec![1; length];
        let timed = |known: usize| -> (f64, usize) {
            let seconds = (0..subject.rounds).map(|_| {
                let mut cache = Cache::default();
                pass(model, &rows_of(0, &ids[..known.max(1)], 0), &mut cache, &mut alone, &mut unseen);
                let mut cache = if known == 0 { Cache::default() } else { cache };
                let begun = Instant::now();
                pass(model, &rows_of(0, &ids, known), &mut cache, &mut alone, &mut unseen);
                (begun.elapsed().as_secs_f64(), cache.len())
            });
            let all: Vec<(f64, usize)> = seconds.collect();
            (median(all.iter().map(|one| one.0).collect()), all[0].1)
        };
        let ((again, _), (new, numbers)) = (timed(0), timed(length - 1));
        (gain, kept) = (again / new, numbers);
        let cells = [ms(again), ms(new), times(gain), bytes(4.0 * numbers as f64)];
        rows.push(Row::new(same(length.to_string()), cells).with_bar(again));
    }
    let each = 4 * kept / LENGTHS[LENGTHS.len() - 1];
    Ok(Figure::new(
        "4.cache",
        text!("One more token of a text (ms), and what its keys and values take", "再生成一个 token（毫秒），以及键和值占用的内存"),
        "tokens of text = 文本的 token 数 | all again, ms = 全部重算，毫秒 | with a cache, ms = 有缓存，毫秒 | gain = 倍数 | kept = 占用",
        rows,
    )
    .with_facts([("4.cache_gain", times(gain)), ("4.kv_bytes", bytes(each as f64)), ("4.layers", model.sizes.layers.to_string()), ("4.width", model.sizes.width.to_string())]))
}

/// What temperature and cuts leave of the candidates.
fn draws(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let ids = encode(&subject.tokenizer, "Hello!")?;
    let logits = pass(&subject.model, &rows_of(0, &ids, 0), &mut Cache::default(), &mut alone, &mut unseen);
    let logits = last(&logits, &subject.model);
    let settings = [(0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 0.9)];
    let row = |(temperature, top_p): (f32, f32)| {
        let left = Sampling { temperature, top_p, ..Sampling::GREEDY }.candidates(logits);
        let first: Vec<String> = left
            .iter()
            .take(3)
            .map(|&(id, share)| Ok(format!("{} {:.1} %", subject.spelled(id)?, share * 100.0)))
            .collect::<anyhow::Result<_>>()?;
        let cells = [top_p.to_string(), left.len().to_string(), first.join(", ")];
        Ok(Row::new(same(temperature.to_string()), cells).with_bar(left[0].1.into()))
    };
    Ok(Figure::new(
        "4.draws",
        text!(
            "What may follow \"Hello!\", and how likely the likeliest is",
            "“Hello!” 之后可能出现什么，最可能的有多可能"
        ),
        "temperature = 温度 | top_p | tokens left = 剩下的 token | likeliest = 最可能的",
        settings.into_iter().map(row).collect::<anyhow::Result<Vec<_>>>()?,
    ))
}

/// Tokens a second by texts in a step.
fn batches(subject: &Subject<'_>) -> Figure {
    let mut first = [0.0; 2];
    let mut gains = [0.0; 2];
    let mut rows = Vec::new();
    for (i, texts) in BATCHES.into_iter().enumerate() {
        let seconds = [&subject.model, &subject.large].map(|model| subject.decode_s(model, texts));
        let speeds = seconds.map(|s| texts as f64 / s);
        first = if i == 0 { speeds } else { first };
        gains = [speeds[0] / first[0], speeds[1] / first[1]];
        let cells =
            [ms(seconds[0]), digits(speeds[0]), times(gains[0]), ms(seconds[1]), digits(speeds[1]), times(gains[1])];
        rows.push(Row::new(same(texts.to_string()), cells).with_bar(gains[1]));
    }
    Figure::new(
        "4.batch",
        text!("Texts that get a token in one step", "一步中各得一个 token 的文本数"),
        "texts = 文本数 | built-in: ms a step = 内置：每步毫秒 | tokens/s | gain = 倍数 | large: ms a step = 大：每步毫秒 | tokens/s | gain = 倍数",
        rows,
    )
    .with_facts([("4.batch_gain", times(gains[1])), ("4.most_texts", BATCHES[2].to_string())])
}

/// Positions that are taken in different ways by texts that begin alike.
fn blocks(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let sizes = subject.model.sizes;
    let beginning = encode(&subject.tokenizer, &"What do you know about the sea? ".repeat(6))?;
    let texts: Vec<Vec<u32>> =
        (0..8u32).map(|i| beginning.iter().copied().chain([i + 1, i + 2, i + 3]).collect()).collect();
    let mut pool = Blocks::new(POOL, sizes.layers, sizes.width);
    let mut reused = 0;
    for (text, tokens) in texts.iter().enumerate() {
        let found = pool.begin(text, tokens);
        anyhow::ensure!(pool.grow(text, tokens.len()), "the pool holds eight texts");
        pass(&subject.model, &rows_of(text, tokens, found), &mut pool, &mut alone, &mut unseen);
        pool.publish(text, tokens);
        reused += found;
    }
    let written: usize = texts.iter().map(Vec::len).sum();
    let position = (2 * 4 * sizes.layers * sizes.width) as f64;
    let row = |label: Text, positions: usize| {
        Row::new(label, [positions.to_string(), bytes(positions as f64 * position)]).with_bar(positions as f64)
    };
    let rows = [
        row(text!("the longest text reserved for each", "每条都按最长文本预留"), texts.len() * sizes.positions),
        row(text!("each its own list", "每条自己的列表"), written),
        row(text!("blocks, those that begin alike shared", "块，开头相同的共享"), pool.held() * BLOCK),
    ];
    Ok(Figure::new(
        "4.blocks",
        text!("Keys and values of 8 texts that begin alike", "8 条开头相同的文本的键和值"),
        "kept as = 存法 | positions = 位置数 | memory = 内存",
        rows,
    )
    .with_facts([
        ("4.reused", format!("{:.0} %", 100.0 * reused as f64 / written as f64)),
        ("4.shared", pool.shared().to_string()),
        ("4.block", BLOCK.to_string()),
    ]))
}

/// Bytes instead of floats.
fn smaller(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let small = subject.packed(&int8::packed)?;
    let large = Model::random(Sizes::GPT2, &int8::packed)?;
    let pairs = [(text!("built-in", "内置"), &subject.model, &small), (text!("large", "大"), &subject.large, &large)];
    let mut gain = 1.0;
    let rows: Vec<Row> = pairs
        .into_iter()
        .map(|(label, plain, packed)| {
            let seconds = [plain, packed].map(|model| subject.decode_s(model, 1));
            gain = seconds[0] / seconds[1];
            let cells = [
                bytes(plain.bytes() as f64),
                bytes(packed.bytes() as f64),
                ms(seconds[0]),
                ms(seconds[1]),
                times(gain),
            ];
            Row::new(label, cells).with_bar(gain)
        })
        .collect();
    let ids = subject.prompt()?;
    let questions = [ids];
    let end = subject.tokenizer.token_to_id("<|endoftext|>").unwrap_or(u32::MAX);
    let answer = |model: &Model| generate(model, &questions, &mut Cache::default(), Sampling::GREEDY, end, 50).0;
    let is_same = answer(&subject.model) == answer(&small);
    let said = decode(&subject.tokenizer, &answer(&small)[0])?;
    Ok(Figure::new(
        "4.int8",
        text!("Weights in f32 and in bytes, one text", "f32 与字节的权重，一条文本"),
        "model = 模型 | f32 | int8 | f32, ms a step = f32，每步毫秒 | int8, ms a step = int8，每步毫秒 | gain = 倍数",
        rows,
    )
    .with_facts([
        ("4.int8_gain", times(gain)),
        ("4.same_answer", if is_same { "same".into() } else { "**not the same**".into() }),
        ("4.int8_answer", said),
    ]))
}

/// A step of the large model against what the machine can do.
fn roofline(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let mut rows = Vec::new();
    let mut facts = Facts::new();
    for threads in (0..).map(|i| 1 << i).take_while(|&threads| threads <= subject.threads) {
        let limit = Roofline::measure(threads);
        let model = Model::random(Sizes::GPT2, &|matrix| cut(matrix, threads, &plain))?;
        let (seconds, read) = (subject.decode_s(&model, 1), model.bytes() as f64);
        let least = limit.least_s(read, read / 2.0);
        let share = least / seconds;
        let cells = [
            digits(limit.read_bytes_per_s / 1e9),
            digits(limit.ops_per_s / 1e9),
            digits(limit.ops_per_s / limit.read_bytes_per_s),
            ms(least),
            ms(seconds),
            format!("{:.0} %", share * 100.0),
        ];
        rows.push(Row::new(same(threads.to_string()), cells).with_bar(share));
        facts = vec![
            ("4.reads", digits(limit.read_bytes_per_s / 1e9)),
            ("4.does", digits(limit.ops_per_s / 1e9)),
            ("4.large_bytes", bytes(read)),
            ("4.least", ms(least)),
            ("4.ridge", digits(2.0 * limit.ops_per_s / limit.read_bytes_per_s)),
        ];
    }
    Ok(Figure::new(
        "4.roofline",
        text!("One text of the large model in f32, and the least that reading its weights takes", "大模型 f32 一条文本的一步，与只读权重的下限"),
        "threads = 线程 | reads, GB/s = 读，GB/s | does, GFLOP/s = 算，GFLOP/s | operations a byte = 每字节运算 | least, ms a step = 下限，每步毫秒 | measured, ms = 实测，毫秒 | of the limit = 达到下限的",
        rows,
    )
    .with_facts(facts))
}

/// Ranks: what each holds, brings to the sums, and how much the answer differs.
fn shares(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let ids = subject.prompt()?;
    let rows = rows_of(0, &ids, 0);
    let mut brought = 0;
    let whole = pass(&subject.model, &rows, &mut Cache::default(), &mut |x| brought += x.len(), &mut unseen);
    let largest = whole.iter().fold(0f32, |most, x| most.max(x.abs()));
    let sizes = subject.model.sizes;
    let mut all = Vec::new();
    for world in 1..=sizes.heads.min(4) {
        let answer = ranks::Ranks::start(subject.folder, world, &plain)?.step(&rows);
        let difference = whole.iter().zip(&answer).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest;
        let share = Model::load_part(subject.folder, |sizes| ranks::part(sizes, 0, world), &plain)?.bytes() as f64;
        let heads = ranks::part(&sizes, 0, world).heads.len();
        let cells = [heads.to_string(), bytes(share), (brought / ids.len()).to_string(), format!("{difference:.0e}")];
        all.push(Row::new(same(world.to_string()), cells).with_bar(share));
    }
    Ok(Figure::new(
        "4.ranks",
        text!("The built-in model on several ranks", "内置模型放在多个 rank 上"),
        "ranks = rank 数 | heads of rank 0 = rank 0 的头 | its weights = 它的权重 | numbers each brings, a token = 每个 token 各自带来的数 | largest difference of a logit = logit 的最大差别",
        all,
    ))
}
