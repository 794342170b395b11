//! `GET /api/cluster`: who holds what, and what is under way: the live view of the page; and what the model is.

use axum::{Json, extract::State};
use nanoinfer_shared::{Share, protocol::BLOCK_TOKENS};
use serde_json::{Value, json};

use crate::http::{App, model_name};

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
    // Copied, as the engine waits for whoever looks.
    let live = status.live().borrow().clone();
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
        "ranks": ranks,
        "block_tokens": BLOCK_TOKENS,
        "blocks_total": status.blocks_total(),
        "blocks_free": status.blocks_free(),
        "blocks_idle": live.idle,
        "running": status.running(),
        "waiting": status.waiting(),
        "sequences": live.sequences,
    }))
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
        "calculator": app.engine.text().calculator.is_some(),
        "chat_template": app.engine.text().chat.template().is_some(),
    }))
}
