//! Steps 10 and 11 of lesson 4: texts that come and go, and clients that ask over HTTP.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::Instant,
};

use anyhow::Context;
use nanoinfer_steps::{
    batch::generate, blocks::Blocks, cache::Cache, http::serve, open, sampling::Sampling, scheduler::Scheduler,
};

use super::subject::{POOL, QUESTION, Subject};
use crate::{
    lesson::{
        figure::{Figure, Row, same, text},
        words::{digits, ms, times},
    },
    running::median,
};

/// Texts that are to be written, and places for them.
const TEXTS: usize = 12;
const PLACES: usize = 4;

/// Steps that texts of different lengths take in whole batches, and as they come and go.
pub(super) fn scheduling(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let model = &subject.model;
    let prompts: Vec<Vec<u32>> = (0..TEXTS as u32).map(|i| vec![i + 1; 8]).collect();
    // From 4 to 48 tokens each, long and short ones mixed: what ends a text is chance.
    let length = |text: usize| 4 + text * 5 % TEXTS * 4;
    let tokens: usize = (0..TEXTS).map(length).sum();
    let begun = Instant::now();
    let mut whole = 0;
    for (batch, prompts) in prompts.chunks(PLACES).enumerate() {
        let longest = (0..prompts.len()).map(|i| length(batch * PLACES + i)).max().unwrap_or(0);
        whole += generate(model, prompts, &mut Cache::default(), Sampling::GREEDY, u32::MAX, longest).1;
    }
    let whole_s = begun.elapsed().as_secs_f64();
    let blocks = Blocks::new(POOL, model.sizes.layers, model.sizes.width);
    let mut scheduler = Scheduler::new(blocks, 64, PLACES);
    prompts
        .iter()
        .enumerate()
        .for_each(|(text, prompt)| scheduler.add(text, prompt.clone(), length(text), Sampling::GREEDY));
    let begun = Instant::now();
    let mut flowing = 0;
    while !scheduler.is_idle() {
        let plan = scheduler.plan();
        scheduler.step(model, &plan, u32::MAX);
        flowing += 1;
    }
    let flowing_s = begun.elapsed().as_secs_f64();
    let row = |label, steps: usize, seconds: f64| {
        let each = tokens as f64 / steps as f64;
        Row::new(label, [steps.to_string(), digits(each), ms(seconds)]).with_bar(each)
    };
    Ok(Figure::new(
        "4.turns",
        text!("{TEXTS} texts of different lengths on {PLACES} places", "{TEXTS} 条长短不一的文本，{PLACES} 个位置"),
        "batches = 批次 | steps = 步数 | tokens wanted a step = 每步要的 token | all done after, ms = 全部完成，毫秒",
        [
            row(text!("whole, each as long as its longest text", "整批，等最长的一条"), whole, whole_s),
            row(text!("who is done leaves, who waits enters", "完成的离开，等待的进入"), flowing, flowing_s),
        ],
    )
    .with_facts([("4.turns_gain", times(whole as f64 / flowing as f64))]))
}

/// Many clients at once.
pub(super) fn clients(subject: &Subject<'_>) -> anyhow::Result<Figure> {
    let program = Program::start(subject.folder)?;
    program.ask(QUESTION)?;
    let mut rows = Vec::new();
    for clients in [1, 4, 16] {
        let begun = Instant::now();
        let all: Vec<Answer> = thread::scope(|scope| {
            let asked: Vec<_> = (0..clients).map(|_| scope.spawn(|| program.ask(QUESTION))).collect();
            asked.into_iter().map(|one| one.join().expect("a client does not panic")).collect::<anyhow::Result<_>>()
        })?;
        let whole = begun.elapsed().as_secs_f64();
        let first = all.iter().map(|answer| answer.pieces_s.first().copied().context("the server said nothing"));
        let first = median(first.collect::<anyhow::Result<_>>()?);
        let last = median(all.iter().map(|answer| answer.whole_s).collect());
        let cells = [ms(first), ms(last), digits(f64::from(clients) / whole)];
        rows.push(Row::new(same(clients.to_string()), cells).with_bar(f64::from(clients) / whole));
    }
    Ok(Figure::new(
        "4.clients",
        text!("Clients that ask the last program at once", "同时向最后的程序提问的客户端"),
        "clients = 客户端 | first text after, ms = 首段文字，毫秒 | whole answer after, ms = 完整回答，毫秒 | answers/s = 每秒回答",
        rows,
    ))
}

/// The last program, which serves until this one ends.
#[derive(Clone, Copy)]
pub(in crate::lesson) struct Program(SocketAddr);

/// Seconds from a question to each piece of its answer, and to the end.
pub(in crate::lesson) struct Answer {
    pub(in crate::lesson) pieces_s: Vec<f64>,
    pub(in crate::lesson) whole_s: f64,
}

impl Program {
    pub(in crate::lesson) fn start(folder: &Path) -> anyhow::Result<Self> {
        let (model, tokenizer) = open(folder.to_str())?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port on this machine")?;
        let address = listener.local_addr()?;
        let blocks = Blocks::new(POOL, model.sizes.layers, model.sizes.width);
        thread::spawn(move || serve(&listener, model, tokenizer, Scheduler::new(blocks, 64, 32)));
        Ok(Self(address))
    }

    pub(in crate::lesson) fn ask(self, question: &str) -> anyhow::Result<Answer> {
        let begun = Instant::now();
        let body = format!("{{\"prompt\": \"{question}\", \"temperature\": 0}}");
        let mut connection = TcpStream::connect(self.0)?;
        write!(connection, "POST /generate HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut pieces_s = Vec::new();
        for line in BufReader::new(connection).lines() {
            if line?.starts_with("data: {") {
                pieces_s.push(begun.elapsed().as_secs_f64());
            }
        }
        Ok(Answer { pieces_s, whole_s: begun.elapsed().as_secs_f64() })
    }
}
