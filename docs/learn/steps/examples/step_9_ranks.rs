//! Step 9: the model on several ranks, which the second argument counts; each holds a part of every layer.
use std::path::Path;

use nanoinfer_steps::{
    DEMO, decode, encode, likeliest,
    model::plain,
    open,
    pass::{last, rows_of},
    ranks::Ranks,
};

fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1);
    let world = std::env::args().nth(2).map_or(Ok(2), |word| word.parse())?;
    let (model, tokenizer) = open(folder.as_deref())?;
    let ranks = Ranks::start(Path::new(folder.as_deref().unwrap_or(DEMO)), world, &plain)?;
    let end = tokenizer.token_to_id("<|endoftext|>");
    for (text, line) in std::io::stdin().lines().enumerate() {
        let mut ids = encode(&tokenizer, &line?)?;
        let prompt = ids.len();
        let mut known = 0;
        while ids.len() < model.sizes.positions && (ids.len() == prompt || ids.last().copied() != end) {
            let rows = rows_of(text, &ids, known);
            known = ids.len();
            let logits = ranks.step(&rows);
            ids.push(likeliest(last(&logits, &model)));
        }
        println!("{}", decode(&tokenizer, &ids[prompt..])?);
    }
    Ok(())
}
