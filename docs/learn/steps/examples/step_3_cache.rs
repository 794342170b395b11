//! Step 3: keys and values are kept, and only the new token is computed.
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
        let (mut cache, mut known) = (Cache::default(), 0);
        while ids.len() < model.sizes.positions && (ids.len() == prompt || ids.last().copied() != end) {
            let rows = rows_of(0, &ids, known);
            known = ids.len();
            let logits = pass(&model, &rows, &mut cache, &mut alone, &mut unseen);
            ids.push(likeliest(last(&logits, &model)));
        }
        println!("{}", decode(&tokenizer, &ids[prompt..])?);
    }
    Ok(())
}
