//! Step 1: a question becomes tokens, and a token a vector. Which tokens are near?
use nanoinfer_steps::{decode, encode, open};

fn main() -> anyhow::Result<()> {
    let (model, tokenizer) = open(std::env::args().nth(1).as_deref())?;
    for line in std::io::stdin().lines() {
        for id in encode(&tokenizer, &line?)? {
            let near = model
                .neighbours(id, 4)
                .into_iter()
                .map(|(id, cosine)| Ok(format!("{:?} {cosine:.2}", decode(&tokenizer, &[id])?)));
            println!(
                "{id:>5} {:<12} {}",
                format!("{:?}", decode(&tokenizer, &[id])?),
                near.collect::<anyhow::Result<Vec<_>>>()?.join(", ")
            );
        }
    }
    Ok(())
}
