//! The stemmer of rouge_score: Porter's algorithm with NLTK's extensions, which is not Snowball's "English".
//!
//! Reference: M. F. Porter, "An algorithm for suffix stripping", 1980, with the departures that NLTK's
//! `PorterStemmer.NLTK_EXTENSIONS` makes. In every step the first suffix that matches decides, whether or not its
//! condition then holds. Takes lower-case words of ASCII; digits and anything that is no vowel are consonants.

/// Words that are not stemmed by rule.
const POOL: &str = "sky→sky skies→sky dying→die lying→lie tying→tie news→news innings→inning inning→inning \
    outings→outing outing→outing cannings→canning canning→canning howe→howe proceed→proceed \
    exceed→exceed succeed→succeed";

/// The stem of a lower-case word.
pub(crate) fn stem(word: &str) -> String {
    if let Some((_, stem)) = pairs(POOL).find(|(pooled, _)| *pooled == word) {
        return stem.to_owned();
    }
    if word.len() <= 2 {
        return word.to_owned();
    }
    let steps: [fn(&str) -> String; 8] = [step_1a, step_1b, step_1c, step_2, step_3, step_4, step_5a, step_5b];
    steps.iter().fold(word.to_owned(), |word, step| step(&word))
}

fn step_1a(word: &str) -> String {
    match word.strip_suffix("ies") {
        Some(stem) if word.len() == 4 => stem.to_owned() + "ie",
        _ => apply(word, 0, "sses→ss ies→i ss→ss s→"),
    }
}

fn step_1b(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        return stem.to_owned() + if word.len() == 4 { "ie" } else { "i" };
    }
    if word.ends_with("eed") {
        return apply(word, 1, "eed→ee");
    }
    let has_vowel = |stem: &&str| (0..stem.len()).any(|i| !is_consonant(stem, i));
    let Some(stem) = ["ed", "ing"].iter().find_map(|suffix| word.strip_suffix(suffix).filter(has_vowel)) else {
        return word.to_owned();
    };
    if let Some((shorter, replacement)) = first_rule(stem, "at→ate bl→ble iz→ize") {
        return shorter.to_owned() + replacement;
    }
    if let [.., before, last] = stem.as_bytes()
        && before == last
        && is_consonant(stem, stem.len() - 1)
    {
        let doubled = matches!(last, b'l' | b's' | b'z');
        return if doubled { stem } else { &stem[..stem.len() - 1] }.to_owned();
    }
    let ending = if measure(stem) == 1 && ends_consonant_vowel_consonant(stem) { "e" } else { "" };
    stem.to_owned() + ending
}

fn step_1c(word: &str) -> String {
    match word.strip_suffix('y') {
        Some(stem) if stem.len() > 1 && is_consonant(stem, stem.len() - 1) => stem.to_owned() + "i",
        _ => word.to_owned(),
    }
}

fn step_2(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("alli")
        && measure(stem) > 0
    {
        // Shorter by two letters: this ends.
        return step_2(&(stem.to_owned() + "al"));
    }
    if let Some(stem) = word.strip_suffix("ogi").filter(|stem| stem.ends_with('l')) {
        // NLTK measures the stem with its "l", as in "apologi".
        return if measure(stem) > 0 { stem.to_owned() + "og" } else { word.to_owned() };
    }
    let rules = "ational→ate tional→tion enci→ence anci→ance izer→ize bli→ble alli→al entli→ent eli→e ousli→ous \
        ization→ize ation→ate ator→ate alism→al iveness→ive fulness→ful ousness→ous aliti→al iviti→ive \
        biliti→ble fulli→ful";
    apply(word, 1, rules)
}

fn step_3(word: &str) -> String {
    apply(word, 1, "icate→ic ative→ alize→al iciti→ic ical→ic ful→ ness→")
}

fn step_4(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ion") {
        return if measure(stem) > 1 && stem.ends_with(['s', 't']) { stem } else { word }.to_owned();
    }
    let rules = "al→ ance→ ence→ er→ ic→ able→ ible→ ant→ ement→ ment→ ent→ ou→ ism→ ate→ iti→ ous→ ive→ ize→";
    apply(word, 2, rules)
}

fn step_5a(word: &str) -> String {
    let Some(stem) = word.strip_suffix('e') else { return word.to_owned() };
    let stays = match measure(stem) {
        0 => true,
        1 => ends_consonant_vowel_consonant(stem),
        _ => false,
    };
    if stays { word } else { stem }.to_owned()
}

fn step_5b(word: &str) -> String {
    match word.strip_suffix('l') {
        Some(stem) if stem.ends_with('l') && measure(stem) > 1 => stem.to_owned(),
        _ => word.to_owned(),
    }
}

/// What stands before and behind each arrow.
fn pairs(list: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    list.split(' ').filter_map(|pair| pair.split_once('→'))
}

/// Rules are suffixes, each with what replaces it: of the first that matches, the stem before it, and the latter.
fn first_rule<'w>(word: &'w str, rules: &'static str) -> Option<(&'w str, &'static str)> {
    pairs(rules).find_map(|(suffix, replacement)| Some((word.strip_suffix(suffix)?, replacement)))
}

/// The first rule that matches decides, and holds where the stem before it has vowels followed by consonants so often.
fn apply(word: &str, least: usize, rules: &'static str) -> String {
    match first_rule(word, rules) {
        Some((stem, replacement)) if measure(stem) >= least => stem.to_owned() + replacement,
        _ => word.to_owned(),
    }
}

/// Letters other than a vowel; `y` is one at the start and after a vowel.
fn is_consonant(word: &str, i: usize) -> bool {
    match word.as_bytes()[i] {
        b'a' | b'e' | b'i' | b'o' | b'u' => false,
        b'y' => i == 0 || !is_consonant(word, i - 1),
        _ => true,
    }
}

/// How often vowels are followed by consonants: Porter's m.
fn measure(stem: &str) -> usize {
    (1..stem.len()).filter(|&i| !is_consonant(stem, i - 1) && is_consonant(stem, i)).count()
}

/// Porter's *o. NLTK also takes a vowel and a consonant alone.
fn ends_consonant_vowel_consonant(stem: &str) -> bool {
    let n = stem.len();
    let pattern = |from_end: usize| is_consonant(stem, n - from_end);
    match n {
        0 | 1 => false,
        2 => !pattern(2) && pattern(1),
        _ => pattern(3) && !pattern(2) && pattern(1) && !stem.ends_with(['w', 'x', 'y']),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn stems_are_those_of_nltk() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../tests/data/vectors/porter_vectors.json")).unwrap();
        let pairs = vectors["pairs"].as_array().unwrap();
        assert_eq!(pairs.len(), 213);
        for pair in pairs {
            assert_eq!(stem(pair[0].as_str().unwrap()), pair[1].as_str().unwrap(), "{}", pair[0]);
        }
    }
}
