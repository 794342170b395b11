//! A whole cluster inside a program of one's own: text in, a stream of text out.
//!
//! `cargo run --release --example embed -- "What is a cat?"`

use std::io::Write;

use futures_util::StreamExt;
use nanoinfer_coordinator::{
    request::SamplingParams,
    text::{GenerateRequest, MaxTokens, Prompt},
};
use nanoinfer_launch::{Cluster, ClusterConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let question = std::env::args().nth(1).unwrap_or("What is the capital of France?".into());

    // The built-in demo model on one rank, which is a thread of this process. More ranks are processes: set `nproc`, and
    // `worker_binary` to a nanoinfer-launch of the same build.
    let cluster = Cluster::start(ClusterConfig::default())?;

    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let request =
            GenerateRequest::new(Prompt::single_turn(question), SamplingParams::greedy(), MaxTokens::Default(200));
        let mut answer = cluster.text_engine().generate(request).await?;
        while let Some(chunk) = answer.next().await {
            print!("{}", chunk?.text);
            std::io::stdout().flush()?;
        }
        println!();
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;

    cluster.shutdown();
    Ok(())
}
