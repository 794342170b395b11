//! The pictures of the chapters as SVG, drawn from what the code itself says: a `Partition`, live block tables, a trace, and runs of the
//! steps of chapter 4.
//!
//! Colours follow the reader's light or dark setting. Measures nothing that a text repeats.

mod svg;
mod layer;
mod pool;
mod timeline;
mod cosines;
mod attention;
mod noting;
mod cache;
mod draws;
mod turns;
mod rounding;
mod roof;
mod clients;

use std::{fs, path::Path};

use anyhow::Context;
use nanoinfer_launch::{ClusterConfig, output};

use crate::running;

/// Draws all of them.
///
/// # Errors
/// When the model does not start, or a file cannot be written.
pub(super) fn draw(base: &ClusterConfig, folder: &Path) -> anyhow::Result<()> {
    let folder_of_model = running::plan(base)?.model.folder;
    let (model, tokenizer) = nanoinfer_steps::open(folder_of_model.to_str())?;
    let pictures = [
        ("layer.svg", layer::draw()?),
        ("kv-pool.svg", pool::draw(base)?),
        ("step.svg", timeline::draw(base)?),
        ("cosines.svg", cosines::draw(&model, &tokenizer)?),
        ("attention.svg", attention::draw(&model, &tokenizer)?),
        ("cache.svg", cache::draw(&model, &tokenizer)?),
        ("draws.svg", draws::draw(&model, &tokenizer)?),
        ("batch.svg", turns::batch(&model, &tokenizer)?),
        ("rounding.svg", rounding::draw(&model, &folder_of_model)?),
        ("roof.svg", roof::draw()?),
        ("schedule.svg", turns::schedule(&model, &tokenizer)?),
        ("clients.svg", clients::draw(&folder_of_model)?),
    ];
    for (name, picture) in pictures {
        let path = folder.join(name);
        fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))?;
        output::write(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}
