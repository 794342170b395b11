//! Slurm's short forms: lists of nodes like `n[1-2,05],login`, and counts like `2(x3),1`.
//!
//! Reference: the manual of `scontrol show hostnames`, and `SLURM_TASKS_PER_NODE` in that of `sbatch`.

/// The first node of a list; none where it is not one.
pub(super) fn first(list: &str) -> Option<String> {
    let mut name = String::new();
    let mut rest = list.trim();
    // Several brackets in a name: `rack[0-3]n[1-8]`.
    while let Some(at) = rest.find(['[', ',']) {
        name += &rest[..at];
        if rest[at..].starts_with(',') {
            rest = "";
            break;
        }
        let (inside, after) = rest[at + 1..].split_once(']')?;
        let number = inside.split([',', '-']).next().filter(|number| !number.is_empty())?;
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        name += number;
        rest = after;
    }
    name += rest;
    (!name.is_empty() && !name.contains([']', ' '])).then_some(name)
}

/// Counts of all nodes; none where it is no such list.
pub(super) fn counts(list: &str) -> Option<Vec<usize>> {
    /// No cluster has so many nodes.
    const MOST: usize = 1 << 20;
    let mut counts = Vec::new();
    for part in list.trim().split(',') {
        let (count, times): (_, usize) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        let count = count.parse().ok().filter(|count: &usize| *count <= MOST)?;
        if times > MOST - counts.len() {
            return None;
        }
        counts.extend(std::iter::repeat_n(count, times));
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_list_is_found_in_every_form() {
        for (list, node) in [
            ("n1", Some("n1")),
            ("n[1-2,5]", Some("n1")),
            ("n[007-9]", Some("n007")),
            ("login,n[1-2]", Some("login")),
            ("rack[2-3]n[10,12]-ib", Some("rack2n10-ib")),
            ("n[3],n1", Some("n3")),
            ("", None),
            ("n[", None),
            ("n[]", None),
            ("n[a-b]", None),
            ("n1]", None),
        ] {
            assert_eq!(first(list).as_deref(), node, "{list}");
        }
    }

    #[test]
    fn counts_may_be_repeated() {
        assert_eq!(counts("2(x3),1"), Some(vec![2, 2, 2, 1]));
        assert_eq!(counts("1"), Some(vec![1]));
        for wrong in ["", "2(x3", "x", "1,,2", "2(3)", "1(x9223372036854775808)", "9223372036854775808"] {
            assert_eq!(counts(wrong), None, "{wrong}");
        }
    }
}
