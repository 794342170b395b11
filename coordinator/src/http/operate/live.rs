//! `GET /api/cluster` and `/api/steps`: who holds what, and how that came about, for the page's live view; and what the model is.

use axum::{Json, extract::State, http::Uri};
use nanoinfer_shared::{Share, protocol::BLOCK_TOKENS};
use serde_json::{Value, json};

use crate::{
    history::{LiveBlocks, LiveSequence, Replay},
    http::{App, Failure, model_name, sampling},
};

pub(crate) async fn cluster(State(app): State<App>) -> Json<Value> {
    let card = app.engine.card();
    let status = app.engine.status();
    let range = |range: &std::ops::Range<usize>| [range.start, range.end];
    let rank = |(rank, (share, bytes)): (usize, (&Share, &u64))| {
        let life = status.rank(rank);
        json!({
            "rank": rank,
            "lost": life.is_lost,
            "restarts": life.restarts,
            "back_after_s": life.back_after.map(|after| after.as_secs_f64()),
            "heads": range(&share.heads),
            "kv_heads": range(&share.kv_heads),
            "ffn": range(&share.ffn),
            "vocab": range(&share.vocab),
            "weight_bytes": bytes,
        })
    };
    let ranks: Vec<Value> = card.partition.shares().iter().zip(&card.weight_bytes).enumerate().map(rank).collect();
    let shape = &card.shape;
    let live = status.history().now();
    Json(json!({
        "model": model_name::shown(card),
        "dtype": card.dtype.to_string(),
        "n_layer": shape.layers,
        "n_head": shape.attention.heads,
        "n_kv_head": shape.attention.kv_heads,
        "n_embd": shape.width,
        "n_inner": shape.mlp.inner,
        "n_positions": shape.context,
        "vocab_size": shape.vocab_size,
        "ready": status.is_ready(),
        "draining": app.engine.is_stopping(),
        "ranks": ranks,
        "block_tokens": BLOCK_TOKENS,
        "blocks_total": status.blocks_total(),
        "blocks_free": status.blocks_free(),
        "blocks_idle": live.idle,
        "running": status.running(),
        "waiting": status.waiting(),
        "sequences": sequences(&live),
    }))
}

/// `GET /api/steps?next=N`: what happened from entry `N` on, or all that is remembered.
pub(crate) async fn steps(State(app): State<App>, uri: Uri) -> Result<Json<Value>, Failure> {
    let given = uri.query().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("next=")));
    let wrong = |_| Failure::at("next", "`next` should be the number of an entry".to_owned());
    let next = given.map_or(Ok(0), str::parse).map_err(wrong)?;
    let Replay { before, entries, next } = app.engine.status().history().since(next);
    let before = before.map(|blocks| json!({"sequences": sequences(&blocks), "blocks_idle": blocks.idle}));
    Ok(Json(
        json!({"before": before, "entries": entries.iter().map(|entry| &**entry).collect::<Vec<_>>(), "next": next}),
    ))
}

fn sequences(blocks: &LiveBlocks) -> Vec<&LiveSequence> {
    blocks.sequences.values().collect()
}

/// `GET /api/model_info`.
pub(crate) async fn model_info(State(app): State<App>) -> Json<Value> {
    let card = app.engine.card();
    let shape = &card.shape;
    Json(json!({
        "model": model_name::shown(card),
        "model_type": shape.model_type(),
        "parameters": card.parameters,
        "dtype": card.dtype.to_string(),
        "nproc": card.partition.world(),
        "build_id": card.build_id,
        "config": {
            "vocab_size": shape.vocab_size,
            "n_positions": shape.context,
            "n_embd": shape.width,
            "n_layer": shape.layers,
            "n_head": shape.attention.heads,
            "n_kv_head": shape.attention.kv_heads,
            "n_inner": shape.mlp.inner,
            "eos_token_ids": shape.eos_token_ids,
        },
        "defaults": sampling::chat_defaults(&app.engine.text().defaults),
        "weight_bytes": card.weight_bytes.iter().sum::<u64>(),
        "calculator": app.engine.text().calculator.is_some(),
        "system_text": !app.engine.text().chat.ignores_system,
        "thinks": app.engine.text().chat.thinks,
        "chat_template": app.engine.text().chat.template().is_some(),
    }))
}
