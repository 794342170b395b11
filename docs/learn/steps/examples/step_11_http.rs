//! Step 11: a server. The second argument is its port; `curl -N http://127.0.0.1:PORT/generate -d '{"prompt": "What is a cat?"}'` asks.
use std::net::TcpListener;

use nanoinfer_steps::{blocks::Blocks, http::serve, open, scheduler::Scheduler};

fn main() -> anyhow::Result<()> {
    let (model, tokenizer) = open(std::env::args().nth(1).as_deref())?;
    let port = std::env::args().nth(2).map_or(Ok(8080), |word| word.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!("http://{}", listener.local_addr()?);
    let blocks = Blocks::new(512, model.sizes.layers, model.sizes.width);
    serve(&listener, model, tokenizer, Scheduler::new(blocks, 64, 32))
}
