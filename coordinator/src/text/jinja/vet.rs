//! What a template names that nobody here knows, found before any conversation reaches it.
//!
//! Knows instructions and names; does not know whether a branch is ever taken, nor names that a template computes.

use std::{collections::BTreeSet, iter};

use minijinja::{
    Environment, Error, ErrorKind, Value,
    machinery::{CompiledTemplate, Instruction, Instructions},
};

use super::{methods, methods::OF_OBJECTS};

/// Filters, tests, functions and methods without a meaning here, in words and in order.
pub(super) fn unknown(environment: &Environment<'_>, compiled: &CompiledTemplate<'_>) -> Vec<String> {
    let all = || iter::once(&compiled.instructions).chain(compiled.blocks.values()).flat_map(instructions);
    let mut named: BTreeSet<&str> = environment.globals().map(|(name, _)| name).collect();
    named.extend(["super", "caller", "loop"]);
    named.extend(all().filter_map(|instruction| match instruction {
        Instruction::StoreLocal(name) => Some(*name),
        _ => None,
    }));
    let mut unknown = BTreeSet::new();
    for instruction in all() {
        let mut state = environment.empty_state();
        let (kind, name, is_known) = match instruction {
            Instruction::ApplyFilter(name, ..) => {
                ("filter", name, has(state.apply_filter(name, &[]), ErrorKind::UnknownFilter))
            }
            Instruction::PerformTest(name, ..) => {
                ("test", name, has(state.perform_test(name, &[]), ErrorKind::UnknownTest))
            }
            Instruction::CallFunction(name, _) => ("function", name, named.contains(name)),
            // A macro may be an attribute: of a namespace, of `self`.
            Instruction::CallMethod(name, _) => {
                let samples = [Value::from(""), Value::from_iter([0]), Value::from_pairs([("", 0)])];
                let mut results = samples.iter().map(|sample| methods::call(&mut state, sample, name, &[]));
                let is_known = results.any(|result| has(result, ErrorKind::UnknownMethod));
                ("method", name, is_known || named.contains(name) || OF_OBJECTS.contains(name))
            }
            _ => continue,
        };
        if !is_known && !compiled.blocks.contains_key(name) {
            unknown.insert(format!("{kind} `{name}`"));
        }
    }
    unknown.into_iter().collect()
}

/// Whether a call without arguments failed for any other reason than that there is no such thing.
fn has<T>(result: Result<T, Error>, missing: ErrorKind) -> bool {
    result.err().is_none_or(|error| error.kind() != missing)
}

fn instructions<'a, 's>(list: &'a Instructions<'s>) -> impl Iterator<Item = &'a Instruction<'s>> {
    (0..).map_while(|at| list.get(at))
}
