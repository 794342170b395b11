//! Which of several GGUF files is meant, by a name or a quantisation.
//!
//! Of a split model the first part stands for all. Does not know where the files are.

use nanoinfer_checkpoint::{gguf_parts, is_gguf};

/// What lies beside models and is none: what sees pictures, and what quantising was guided by.
const NO_MODELS: [&str; 2] = ["mmproj", "imatrix"];
/// Between the name of a model and its quantisation.
const BEFORE_QUANTISATION: [char; 3] = ['-', '.', '_'];

/// Why it is not clear which file is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", words(.wanted, .offered, *.fits))]
pub struct Unclear {
    /// What was asked for.
    pub wanted: Option<String>,
    /// What there is, or of it all that fits.
    pub offered: Vec<String>,
    /// Whether all of these fit.
    pub fits: bool,
}

fn words(wanted: &Option<String>, offered: &[String], fits: bool) -> String {
    let files = offered.join(", ");
    match wanted {
        None => format!("has several GGUF models: {files}"),
        Some(wanted) if fits => format!("has several GGUF models that are `{wanted}`: {files}"),
        Some(wanted) if files.is_empty() => format!("has no GGUF model, so none that is `{wanted}`"),
        Some(wanted) => format!("has no GGUF model that is `{wanted}`; there are {files}"),
    }
}

/// The file of the model among `names` that is `wanted`, or is the only one; `None` where there is none and none was asked for.
pub(super) fn chosen(names: impl Iterator<Item = String>, wanted: Option<&str>) -> Result<Option<String>, Unclear> {
    let mut models: Vec<String> = names.filter(|name| is_model(name)).collect();
    models.sort_unstable();
    let offered = models.clone();
    if let Some(wanted) = wanted {
        // Any part stands for all. A name in full is that of one file, whatever ends like it.
        let first = &parts(wanted)[0];
        match models.iter().position(|name| name == first) {
            Some(exact) => models = vec![models.swap_remove(exact)],
            None => models.retain(|name| is_quantisation(name, wanted)),
        }
    }
    match (models.len(), wanted) {
        (0, None) => Ok(None),
        (1, _) => Ok(models.pop()),
        (0, Some(wanted)) => Err(Unclear { wanted: Some(wanted.into()), offered, fits: false }),
        (_, wanted) => Err(Unclear { wanted: wanted.map(str::to_owned), offered: models, fits: true }),
    }
}

/// All files of the model whose first is `name`.
pub(super) fn parts(name: &str) -> Vec<String> {
    gguf_parts(name).map_or_else(|| vec![name.to_owned()], Iterator::collect)
}

fn is_model(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    is_gguf(file)
        && !NO_MODELS.iter().any(|other| file.contains(other))
        && gguf_parts(name).is_none_or(|mut parts| parts.next().as_deref() == Some(name))
}

/// Whether the model is so quantised, by its name or its folder's: `model-Q4_K_M.gguf`, `Q8_0/model-00001-of-00002.gguf`.
fn is_quantisation(name: &str, wanted: &str) -> bool {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let stem = file.trim_end_matches(".gguf");
    let stem = if gguf_parts(name).is_some() { stem.rsplitn(4, '-').nth(3).unwrap_or(stem) } else { stem };
    let (stem, wanted) = (stem.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    let ends = |text: &str| {
        let before = text.strip_suffix(&wanted);
        before.is_some_and(|before| before.is_empty() || before.ends_with(BEFORE_QUANTISATION))
    };
    ends(&stem)
        || folder.rsplit('/').next().is_some_and(|folder| !folder.is_empty() && ends(&folder.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_meant_by_its_name_its_quantisation_or_as_the_only_one() {
        let names = [
            "README.md",
            "m-Q4_K_M.gguf",
            "m-Q8_0-00001-of-00002.gguf",
            "m-Q8_0-00002-of-00002.gguf",
            "BF16/m.gguf",
            "mmproj-m-F16.gguf",
            "m.UD-Q4_K_XL.gguf",
        ];
        let of = |names: &[&str], wanted| chosen(names.iter().map(|&name| name.to_owned()), wanted);
        for (wanted, expected) in [
            ("Q4_K_M", "m-Q4_K_M.gguf"),
            ("q4_k_m", "m-Q4_K_M.gguf"),
            ("m-Q4_K_M.gguf", "m-Q4_K_M.gguf"),
            ("Q8_0", "m-Q8_0-00001-of-00002.gguf"),
            ("m-Q8_0-00002-of-00002.gguf", "m-Q8_0-00001-of-00002.gguf"),
            ("bf16", "BF16/m.gguf"),
            ("BF16/m.gguf", "BF16/m.gguf"),
            ("Q4_K_XL", "m.UD-Q4_K_XL.gguf"),
        ] {
            assert_eq!(of(&names, Some(wanted)).unwrap().as_deref(), Some(expected), "{wanted}");
        }
        for wanted in ["4_K_M", "F16", "mmproj-m-F16.gguf", ""] {
            let error = of(&names, Some(wanted)).unwrap_err().to_string();
            assert!(error.contains(&format!("`{wanted}`")) && error.contains("m-Q8_0-00001"), "{error}");
        }
        assert!(of(&names, None).unwrap_err().to_string().contains("several GGUF models: BF16/m.gguf, m-Q4_K_M.gguf"));
        assert_eq!(of(&names[..1], None), Ok(None));
        assert_eq!(of(&names[2..4], None).unwrap().as_deref(), Some("m-Q8_0-00001-of-00002.gguf"));
        assert_eq!(parts("m-Q8_0-00001-of-00002.gguf"), names[2..4]);
        let same = ["a-Q4_0.gguf", "b-Q4_0.gguf"];
        assert!(of(&same, Some("Q4_0")).unwrap_err().to_string().contains("several GGUF models that are `Q4_0`: a"));
    }
}
