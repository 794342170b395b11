//! Step 2: tokens become an answer. For every token of it, everything is computed again.
use nanoinfer_steps::{
    cache::Cache,
    decode, encode, likeliest, open,
    pass::{alone, last, pass, rows_of, unseen},
};

fn main() -> anyhow::Result<()> {
    let (model, tokenizer) = open(std::env::args().nth(1).as_deref())?;
    let end = tokenizer.token_to_id("<|endoftext|>");
    for line in std::io::stdin().lines() {
        let mut ids = encode(&tokenizer, &line?)?;
        let prompt = ids.len();
        while ids.len() < model.sizes.positions && (ids.len() == prompt || ids.last().copied() != end) {
            let mut cache = Cache::default();
            let rows = rows_of(0, &ids, 0);
            let logits = pass(&model, &rows, &mut cache, &mut alone, &mut unseen);
            ids.push(likeliest(last(&logits, &model)));
        }
        println!("{}", decode(&tokenizer, &ids[prompt..])?);
    }
    Ok(())
}
