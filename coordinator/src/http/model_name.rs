//! By which names the model is served.

use super::{Failure, Fields};
use crate::config::ModelCard;

/// Takes the field `model`; an absent one means the model that is served.
pub(super) fn take(fields: &mut Fields, card: &ModelCard) -> Result<(), Failure> {
    fields.string("model")?.map_or(Ok(()), |name| check(&name, card))
}

pub(super) fn check(name: &str, card: &ModelCard) -> Result<(), Failure> {
    let is_known = names(card).any(|known| known == name || name.strip_suffix(":latest") == Some(known));
    is_known.then_some(()).ok_or_else(|| Failure::model_not_found(name, shown(card)))
}

/// The name that replies carry: the one that was given, else what was typed; of a path its last component, as where it
/// lies on this host is nobody's business.
pub(super) fn shown(card: &ModelCard) -> &str {
    let typed = card.name.trim_end_matches('/');
    let is_hub_id = typed.matches('/').count() == 1 && !typed.starts_with(['/', '.', '~']);
    let own = if is_hub_id { typed } else { last_component(typed) };
    card.served_name.as_deref().unwrap_or(own)
}

/// What was typed, its last path component, and the name it is served under.
fn names(card: &ModelCard) -> impl Iterator<Item = &str> {
    let typed = card.name.trim_end_matches('/');
    [card.name.as_str(), typed, last_component(typed)].into_iter().chain(card.served_name.as_deref())
}

fn last_component(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::demo_card;

    #[test]
    fn the_shown_name_is_the_given_one_or_what_a_path_ends_in() {
        for (typed, shown_name) in [
            ("gpt2", "gpt2"),
            ("org/name", "org/name"),
            ("/srv/secret/place/gpt2", "gpt2"),
            ("/gpt2/", "gpt2"),
            ("./models/gpt2", "gpt2"),
            ("~/gpt2", "gpt2"),
            ("../gpt2", "gpt2"),
            ("a/b/model.safetensors", "model.safetensors"),
        ] {
            let card = ModelCard { name: typed.into(), ..demo_card() };
            assert_eq!(shown(&card), shown_name, "{typed}");
            let card = ModelCard { served_name: Some("public".into()), ..card };
            assert_eq!(shown(&card), "public");
        }
    }

    #[test]
    fn a_model_answers_to_its_names_only() {
        let card = ModelCard { served_name: Some("served".into()), ..demo_card() };
        for name in [
            "someone/nano-chat",
            "nano-chat",
            "served",
            "someone/nano-chat:latest",
            "nano-chat:latest",
            "served:latest",
        ] {
            assert!(check(name, &card).is_ok(), "{name}");
        }
        for name in ["", "someone", "nano", "nano-chat:7b", "gpt-4", ":latest"] {
            assert!(check(name, &card).is_err(), "{name}");
        }
    }
}
