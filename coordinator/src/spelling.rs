//! "did you mean": the known name that a typed one is nearest to.

use strsim::osa_distance;

/// The name among `known` that `typed` is a slip of the keyboard away from; none if `typed` is not near any.
pub fn closest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (typed.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (osa_distance(&typed.to_lowercase(), &name.to_lowercase()), name))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_other_names_are_not() {
        let known = ["nano-chat", "gpt2", "gpt2-xl"];
        assert_eq!(closest("nano-caht", known), Some("nano-chat"));
        assert_eq!(closest("gpt-2", known), Some("gpt2"));
        assert_eq!(closest("GPT2-XL", known), Some("gpt2-xl"));
        assert_eq!(closest("llama", known), None);
        assert_eq!(osa_distance("", "abc"), 3);
    }
}
