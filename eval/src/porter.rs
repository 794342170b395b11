//! The stemmer of rouge_score: Porter's algorithm with NLTK's extensions, which is not Snowball's "English".
//!
//! Reference: M. F. Porter, "An algorithm for suffix stripping", 1980, with the departures that NLTK's
//! `PorterStemmer.NLTK_EXTENSIONS` makes. In every step the first suffix that matches decides, whether or not its
//! condition then holds. Takes lower-case words; digits and anything that is no vowel are consonants.

/// Words that are not stemmed by rule.
const POOL: &str = "sky→sky skies→sky dying→die lying→lie tying→tie news→news innings→inning inning→inning \
    outings→outing outing→outing cannings→canning canning→canning howe→howe proceed→proceed \
    exceed→exceed succeed→succeed";

/// The stem of a lower-case word.
pub(crate) fn stem(word: &str) -> String {
    if let Some((_, stem)) = pairs(POOL).find(|(pooled, _)| *pooled == word) {
        return stem.to_owned();
    }
    if word.chars().count() <= 2 {
        return word.to_owned();
    }
    let mut word: Vec<char> = word.chars().collect();
    for step in [step_1a, step_1b, step_1c, step_2, step_3, step_4, step_5a, step_5b] {
        word = step(word);
    }
    word.into_iter().collect()
}

/// A word or a stem.
type Letters = Vec<char>;

fn step_1a(word: Letters) -> Letters {
    if word.len() == 4
        && let Some(stem) = without(&word, "ies")
    {
        return joined(stem, "ie");
    }
    apply(word, 0, "sses→ss ies→i ss→ss s→")
}

fn step_1b(word: Letters) -> Letters {
    if let Some(stem) = without(&word, "ied") {
        return joined(stem, if word.len() == 4 { "ie" } else { "i" });
    }
    if let Some(stem) = without(&word, "eed") {
        return if measure(stem) > 0 { joined(stem, "ee") } else { word };
    }
    let has_vowel = |stem: &&[char]| (0..stem.len()).any(|i| !is_consonant(stem, i));
    let Some(stem) = ["ed", "ing"].iter().find_map(|suffix| without(&word, suffix).filter(has_vowel)) else {
        return word;
    };
    for (suffix, replacement) in [("at", "ate"), ("bl", "ble"), ("iz", "ize")] {
        if let Some(shorter) = without(stem, suffix) {
            return joined(shorter, replacement);
        }
    }
    if let [.., before, last] = stem
        && before == last
        && is_consonant(stem, stem.len() - 1)
    {
        let doubled = matches!(last, 'l' | 's' | 'z');
        return if doubled { stem.to_vec() } else { stem[..stem.len() - 1].to_vec() };
    }
    if measure(stem) == 1 && ends_consonant_vowel_consonant(stem) { joined(stem, "e") } else { stem.to_vec() }
}

fn step_1c(word: Letters) -> Letters {
    match without(&word, "y") {
        Some(stem) if stem.len() > 1 && is_consonant(stem, stem.len() - 1) => joined(stem, "i"),
        _ => word,
    }
}

fn step_2(word: Letters) -> Letters {
    if let Some(stem) = without(&word, "alli")
        && measure(stem) > 0
    {
        // Shorter by two letters: this ends.
        return step_2(joined(stem, "al"));
    }
    if let Some(stem) = without(&word, "logi") {
        // NLTK measures the stem with its "l", as in "apologi".
        return if measure(&word[..word.len() - 3]) > 0 { joined(stem, "log") } else { word };
    }
    let rules = "ational→ate tional→tion enci→ence anci→ance izer→ize bli→ble alli→al entli→ent eli→e ousli→ous \
        ization→ize ation→ate ator→ate alism→al iveness→ive fulness→ful ousness→ous aliti→al iviti→ive \
        biliti→ble fulli→ful";
    apply(word, 1, rules)
}

fn step_3(word: Letters) -> Letters {
    apply(word, 1, "icate→ic ative→ alize→al iciti→ic ical→ic ful→ ness→")
}

fn step_4(word: Letters) -> Letters {
    if let Some(stem) = without(&word, "ion") {
        let follows = matches!(stem.last(), Some('s' | 't'));
        return if measure(stem) > 1 && follows { stem.to_vec() } else { word };
    }
    let rules = "al→ ance→ ence→ er→ ic→ able→ ible→ ant→ ement→ ment→ ent→ ou→ ism→ ate→ iti→ ous→ ive→ ize→";
    apply(word, 2, rules)
}

fn step_5a(word: Letters) -> Letters {
    let Some(stem) = without(&word, "e") else { return word };
    match measure(stem) {
        0 => word,
        1 if ends_consonant_vowel_consonant(stem) => word,
        _ => stem.to_vec(),
    }
}

fn step_5b(word: Letters) -> Letters {
    match without(&word, "ll") {
        Some(stem) if measure(&word[..word.len() - 1]) > 1 => joined(stem, "l"),
        _ => word,
    }
}

/// What stands before and behind each arrow.
fn pairs(list: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    list.split(' ').filter_map(|pair| pair.split_once('→'))
}

/// Rules are suffixes, each with what replaces it. The first that matches decides, and holds where the stem before it has
/// vowels followed by consonants so often.
fn apply(word: Letters, least: usize, rules: &'static str) -> Letters {
    let Some((stem, replacement)) = pairs(rules).find_map(|(suffix, new)| Some((without(&word, suffix)?, new))) else {
        return word;
    };
    if measure(stem) >= least { joined(stem, replacement) } else { word }
}

/// The word without a suffix that it ends with.
fn without<'a>(word: &'a [char], suffix: &str) -> Option<&'a [char]> {
    let at = word.len().checked_sub(suffix.len())?;
    word[at..].iter().copied().eq(suffix.chars()).then_some(&word[..at])
}

fn joined(stem: &[char], ending: &str) -> Letters {
    stem.iter().copied().chain(ending.chars()).collect()
}

/// Letters other than a vowel; `y` is one at the start and after a vowel.
fn is_consonant(word: &[char], i: usize) -> bool {
    match word[i] {
        'a' | 'e' | 'i' | 'o' | 'u' => false,
        'y' => i == 0 || !is_consonant(word, i - 1),
        _ => true,
    }
}

/// How often vowels are followed by consonants: Porter's m.
fn measure(stem: &[char]) -> usize {
    (1..stem.len()).filter(|&i| !is_consonant(stem, i - 1) && is_consonant(stem, i)).count()
}

/// Porter's *o. NLTK also takes a vowel and a consonant alone.
fn ends_consonant_vowel_consonant(stem: &[char]) -> bool {
    let n = stem.len();
    let pattern = |from_end: usize| is_consonant(stem, n - from_end);
    match n {
        0 | 1 => false,
        2 => !pattern(2) && pattern(1),
        _ => pattern(3) && !pattern(2) && pattern(1) && !matches!(stem[n - 1], 'w' | 'x' | 'y'),
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
