//! Lesson 3: a model split over ranks: who holds what, what a reduction costs, when to stop, and what happens at a death.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use nanoinfer_eval::connection::Connection;
use nanoinfer_launch::{
    Category, ClusterConfig, ModelShape, Partition, StepTimes, config::CommChoice, explanation::StepReport,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{
    figure::{Figure, Results, Row, Text, same, text},
    words::{bytes, digits, machine, ms, times},
};
use crate::{
    events::Events,
    failure::Failure,
    model_options::ModelOptions,
    private_server::PrivateServer,
    running::{self, Length, Running, in_turns, medians},
};

/// gpt2-xl's `config.json`, as far as sizes go.
pub(super) const GPT2_XL: &str = r#"{"n_layer":48,"n_head":25,"n_embd":1600,"n_positions":1024,"vocab_size":50257}"#;
/// Most ranks that are tried.
const MAX_RANKS: usize = 4;
/// Texts of a step.
const BATCHES: [u32; 2] = [1, 16];

pub(super) fn run(base: &ClusterConfig, options: &ModelOptions, rounds: u32) -> Result<Results, Failure> {
    let plan = running::plan(base)?;
    let shape = plan.model.shape.clone();
    if shape.attention.heads < 2 {
        return Err(Failure::usage(anyhow!("{} has one attention head, and a head is never split", plan.model.name)));
    }
    let length = Length::within(shape.context);
    let xl = ModelShape::from_config_json(GPT2_XL).context("the sizes of gpt2-xl")?;
    let (name, dtype) = (&plan.model.name, plan.load.dtype);
    let (links, ranks) = (links(base, &shape, (length, rounds))?, ranks(base, &shape, (length, rounds))?);
    Ok(Results {
        number: 3,
        title: text!("a model over several ranks", "一个模型，多个 rank"),
        conditions: text!(
            "{name}, {dtype}, one thread a rank; medians of {rounds} rounds; {}",
            "{name}，{dtype}，每个 rank 一个线程；{rounds} 轮的中位数；{}",
            machine()
        ),
        figures: vec![partition(&xl)?, links, ranks, death(options)?],
        facts: vec![("3.xl_heads", xl.attention.heads.to_string())],
        listings: Vec::new(),
    })
}

/// Who would hold what of gpt2-xl, whose sizes these are.
fn partition(shape: &ModelShape) -> anyhow::Result<Figure> {
    let mut rows = Vec::new();
    for world in [2, 3] {
        let partition = Partition::new(shape, world)?;
        for (rank, share) in partition.shares().iter().enumerate() {
            let range = |range: &std::ops::Range<usize>| format!("{} … {}", range.start, range.end - 1);
            let label = text!("rank {rank} of {world}", "{world} 个中的 rank {rank}");
            let cells = [share.heads.len().to_string(), range(&share.heads), range(&share.ffn), range(&share.vocab)];
            rows.push(Row::new(label, cells).with_bar(share.heads.len() as f64));
        }
    }
    Ok(Figure::new(
        "3.partition",
        text!("gpt2-xl, 25 heads, over 2 and 3 ranks", "gpt2-xl 的 25 个头，分给 2 个和 3 个 rank"),
        "rank | heads = 头数 | which = 哪些 | columns of the MLP = MLP 的列 | rows of the vocabulary = 词表的行",
        rows,
    ))
}

/// Seconds of a step, of its reductions, waiting for the other rank included, and of the waiting: on average over ranks.
fn of_step(step: &StepReport) -> [f64; 3] {
    let on_average = |category: Category| {
        let on = |times: &StepTimes| -> Duration {
            times.stages.iter().filter(|stage| stage.category == category).map(|stage| stage.time).sum()
        };
        (step.ranks.iter().map(on).sum::<Duration>() / step.ranks.len().max(1) as u32).as_secs_f64()
    };
    [step.elapsed.as_secs_f64(), on_average(Category::Reduction), on_average(Category::Waiting)]
}

/// What the reductions of a step cost over shared memory and over TCP.
fn links(base: &ClusterConfig, shape: &ModelShape, (length, rounds): (Length, u32)) -> anyhow::Result<Figure> {
    let reductions = 2 * shape.layers + 1;
    let kinds = [
        (text!("shared memory", "共享内存"), "`--comm shm`", CommChoice::Shm),
        (same("TCP"), "`--comm tcp`", CommChoice::Tcp),
    ];
    let samples = in_turns(rounds, &kinds, |&(.., comm)| {
        let change = |config: &mut ClusterConfig| (config.nproc, config.threads, config.comm) = (2, Some(1), comm);
        Running::during(base, change, |running| {
            Ok([running.explained_steps(BATCHES[0], length)?, running.explained_steps(BATCHES[1], length)?])
        })
    })?;
    let mut rows = Vec::new();
    let mut each_us = Vec::new();
    for ((link, switch, _), samples) in kinds.into_iter().zip(&samples) {
        for (i, batch) in BATCHES.into_iter().enumerate() {
            let steps: Vec<[f64; 3]> = samples.iter().flat_map(|steps| &steps[i]).map(of_step).collect();
            let [step_s, reducing_s, waiting_s] = medians(&steps);
            let each = (reducing_s - waiting_s).max(0.0) / reductions as f64 * 1e6;
            each_us.push(each);
            let cells = [
                switch.to_owned(),
                bytes(f64::from(batch) * (shape.width * size_of::<f32>()) as f64),
                digits(each),
                ms(reducing_s),
                ms(waiting_s),
                format!("{:.0} %", reducing_s / step_s * 100.0),
            ];
            let texts = if batch == 1 { "1 text".to_owned() } else { format!("{batch} texts") };
            let label = text!("{}, {texts}", "{}，{batch} 条文本", link);
            rows.push(Row::new(label, cells).with_bar(reducing_s / step_s));
        }
    }
    let figure = Figure::new(
        "3.links",
        text!("{reductions} all-reduces a step between 2 ranks", "2 个 rank，每步 {reductions} 次 all-reduce"),
        "link = 链路 | switch = 开关 | bytes each = 每次字节 | µs each, without waiting = 每次微秒，不含等待 | \
         ms a step, with it = 每步毫秒，含等待 | of these waiting = 其中等待 | of the step = 占一步",
        rows,
    );
    Ok(figure.with_facts([
        ("3.reductions", reductions.to_string()),
        ("3.layers", shape.layers.to_string()),
        ("3.shm_us", digits(each_us[0])),
        ("3.tcp_us", digits(each_us[BATCHES.len()])),
    ]))
}

/// Speed by the number of ranks, each with one thread.
fn ranks(base: &ClusterConfig, shape: &ModelShape, (length, rounds): (Length, u32)) -> anyhow::Result<Figure> {
    let worlds: Vec<usize> = (1..=shape.attention.heads.min(MAX_RANKS)).collect();
    let samples = in_turns(rounds, &worlds, |&world| {
        let change = |config: &mut ClusterConfig| (config.nproc, config.threads) = (world, Some(1));
        Running::during(base, change, |running| {
            let weights = running.plan.memory[0].weights as f64;
            Ok([running.decode_s(BATCHES[0], length)?, running.decode_s(BATCHES[1], length)?, weights])
        })
    })?;
    let middle: Vec<[f64; 3]> = samples.iter().map(|samples| medians(samples)).collect();
    let row = |(&world, of): (&usize, &[f64; 3])| {
        let speed = |at: usize| f64::from(BATCHES[at]) / of[at];
        let gain = |at: usize| times(middle[0][at] / of[at]);
        let cells = [bytes(of[2]), digits(speed(0)), gain(0), digits(speed(1)), gain(1)];
        Row::new(same(world.to_string()), cells).with_bar(speed(1))
    };
    let best = (0..worlds.len()).min_by(|&a, &b| middle[a][1].total_cmp(&middle[b][1])).unwrap_or(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let figure = Figure::new(
        "3.ranks",
        text!(
            "More ranks of one thread each, on {cores} cores (tokens/s)",
            "{cores} 核上增加 rank，每个一线程（每秒 token）"
        ),
        &format!(
            "`--nproc` | weights of rank 0 = rank 0 的权重 | 1 text = 1 条文本 | \
             against 1 rank = 相比 1 个 rank | {many} texts = {many} 条文本 | against 1 rank = 相比 1 个 rank",
            many = BATCHES[1]
        ),
        worlds.iter().zip(&middle).map(row),
    );
    Ok(figure.with_facts([("3.best", worlds[best].to_string()), ("3.cores", cores.to_string())]))
}

/// A rank of a real server is killed in the middle of an answer.
fn death(options: &ModelOptions) -> Result<Figure, Failure> {
    let server = PrivateServer::start(&options.with_nproc(2))?;
    let connection = Connection::new(server.url.clone(), None, None, "");
    let undisturbed = answer(&connection, || Ok(()))?;
    let ranks = || children(server.pid()).context("cannot list the ranks");
    let before = ranks()?;
    let mut killed = None;
    let disturbed = answer(&connection, || {
        let victim = before.last().and_then(|pid| Pid::from_raw(*pid)).context("the server has no ranks")?;
        kill_process(victim, Signal::KILL).context("cannot kill the rank")?;
        killed = Some(Instant::now());
        Ok(())
    })?;
    let killed = killed.context("the answer was too short")?;
    let since = |moment: Instant| (moment - killed).as_secs_f64();
    let next = disturbed.iter().find(|(_, came)| *came > killed).context("no token came after that")?.1;
    let end = disturbed.last().context("the answer is empty")?.1;
    let text = |tokens: &[(String, Instant)]| tokens.iter().map(|(token, _)| token.as_str()).collect::<String>();
    let is_same = text(&undisturbed) == text(&disturbed);
    let is_new = ranks()?.iter().any(|pid| !before.contains(pid));
    let row = |label: Text, seconds: f64| Row::new(label, [ms(seconds)]).with_bar(seconds);
    let figure = Figure::new(
        "3.death",
        text!(
            "`kill -9` of one of two ranks in the middle of an answer (ms)",
            "回答到一半时，两个 rank 中的一个被 `kill -9`（毫秒）"
        ),
        "event = 事件 | after = 之后",
        [
            row(text!("a rank is killed", "一个 rank 被杀死"), 0.0),
            row(
                text!("the next token comes, from the rank in its place", "下一个 token 到来，来自顶替它的 rank"),
                since(next),
            ),
            row(text!("the answer has ended", "回答结束"), since(end)),
        ],
    );
    let same = if is_same && is_new { "same" } else { "**not the same**" };
    Ok(figure.with_facts([("3.same", same.to_owned()), ("3.next", format!("{} ms", ms(since(next))))]))
}

/// The tokens of a streamed answer, and when they came; after some of them `disturb` does what it does.
fn answer(
    connection: &Connection,
    disturb: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<(String, Instant)>> {
    let body = json!({ "prompt": "Once", "max_tokens": 100, "ignore_eos": true, "seed": 7, "stream": true });
    let (_, reply) = connection.post("/v1/completions", &body)?;
    let (mut tokens, mut disturb) = (Vec::new(), Some(disturb));
    for event in Events::new(reply) {
        let event = event?;
        let token = event.pointer("/choices/0/text").and_then(Value::as_str).unwrap_or_default();
        tokens.push((token.to_owned(), Instant::now()));
        if let Some(disturb) = disturb.take_if(|_| tokens.len() == 20) {
            disturb()?;
        }
    }
    Ok(tokens)
}

/// Processes that a process has started; threads list their own.
fn children(pid: u32) -> std::io::Result<Vec<i32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let list = fs::read_to_string(thread?.path().join("children"))?;
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(children)
}
