//! The pictures of the chapters as SVG, drawn from what the code itself says: a `Partition`, live block tables, a trace, attention.
//!
//! Colours follow the reader's light or dark setting. Measures nothing that a text repeats.

mod svg;
mod layer;
mod pool;
mod timeline;
mod attention;

use std::{fs, path::Path};

use anyhow::Context;
use nanoinfer_launch::{ClusterConfig, output};

use crate::running;

/// Draws all of them.
///
/// # Errors
/// When the model does not start, or a file cannot be written.
pub(super) fn draw(base: &ClusterConfig, folder: &Path) -> anyhow::Result<()> {
    let model = running::plan(base)?.model.folder;
    let pictures = [
        ("layer.svg", layer::draw()?),
        ("kv-pool.svg", pool::draw(base)?),
        ("step.svg", timeline::draw(base)?),
        ("attention.svg", attention::draw(&model)?),
    ];
    for (name, picture) in pictures {
        let path = folder.join(name);
        fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))?;
        output::write(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}
