//! `nanoinfer eval speed`: scoring through a server beside the engine's own speed for the same prompts.
//!
//! Both score every position of random prompts. The engine is driven by its handle, as `nanoinfer bench` does; the server
//! is a private one, met as every evaluation meets it. Runs take turns, so that a busy machine slows both alike.

use std::time::Instant;

use clap::Args;
use nanoinfer_eval::{server::Server, work::Work};
use nanoinfer_launch::{
    output,
    request::{PromptLogprobs, Request},
};
use serde_json::json;

use crate::{
    failure::Failure,
    model_options::ModelOptions,
    random::Random,
    running::{Running, all_ended, medians},
    target::Target,
};

#[derive(Debug, Args)]
pub(crate) struct SpeedOptions {
    #[command(flatten)]
    model: ModelOptions,
    /// Prompts of each run.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    prompts: u32,
    /// Tokens of each prompt [default: the model's context].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    prompt_tokens: Option<u32>,
    /// Requests at a time, over HTTP.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=512))]
    batch_size: u32,
    /// Runs of each, after one to warm up.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

pub(crate) fn run(options: &SpeedOptions) -> Result<(), Failure> {
    let running = Running::start(&options.model.config()?, |_| {})?;
    let shape = &running.plan.model.shape;
    let length = options.prompt_tokens.map_or(shape.context, |n| (n as usize).min(shape.context));
    let mut random = Random::new(1);
    let prompts: Vec<_> = (0..options.prompts).map(|_| random.ids(length, shape.vocab_size)).collect();
    let mut samples = Vec::new();
    Target::private(&options.model)?.ask(|connection| {
        let server = &Server::connect(connection)?;
        for run in 0..=options.runs {
            let engine = timed(|| score_by_engine(&running, &prompts))?;
            let http = timed(|| score_by_server(server, &prompts, options.batch_size as usize))?;
            if run > 0 {
                samples.push([engine, http, engine / http]);
            }
        }
        Ok(())
    })?;
    let plan = running.shut_down();
    let tokens = (prompts.len() * length) as f64;
    let [engine_s, server_s, ratio] = medians(&samples);
    let (engine, server) = (tokens / engine_s, tokens / server_s);
    let (name, percent) = (&plan.model.name, ratio * 100.0);
    let line = json!({"model": name, "prompts": prompts.len(), "prompt_tokens": length, "runs": options.runs,
                      "engine_tokens_per_s": engine, "server_tokens_per_s": server, "ratio": ratio});
    output::write(format_args!(
        "{name}: {} prompts of {length} tokens, all scored; medians of {} runs\nengine {engine:>10.0} tokens/s\nserver {server:>10.0} tokens/s, {percent:.1} % of the engine's\n{line}\n",
        prompts.len(),
        options.runs
    ))?;
    Ok(())
}

fn score_by_engine(running: &Running, prompts: &[Vec<u32>]) -> anyhow::Result<()> {
    let request = |prompt: &Vec<u32>| {
        let mut request = Request::greedy(prompt.clone(), 0);
        request.sampling.prompt_logprobs = Some(PromptLogprobs { top: 0, from: 0 });
        request
    };
    // At once, so that the queue takes them whatever its size.
    running.block_on(all_ended(running.handle().submit_all(prompts.iter().map(request).collect())?))
}

fn score_by_server(server: &Server<'_>, prompts: &[Vec<u32>], batch_size: usize) -> anyhow::Result<()> {
    let mut work = Work::new(batch_size, None, &json!(null))?;
    let sums: Vec<f64> = work.map("server", prompts, Vec::len, |prompt| {
        let scores = server.score(&[prompt], 0, false)?.remove(0);
        Ok(scores.iter().flatten().map(|score| score.logprob).sum())
    })?;
    anyhow::ensure!(sums.iter().all(|sum| sum.is_finite()), "a prompt was not scored");
    Ok(())
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}
