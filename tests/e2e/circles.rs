//! No circle of files: whoever reads a file needs only what lies below it.
//!
//! An edge is a `use` of an item that another file of the crate defines, or of a module by its name; re-exports are followed to
//! the file of the item, and are edges only of a file that needs them itself. `mod` lines are none, and tests are left out.
//! Paths in expressions are not seen: `use` is how files name what they need here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{Attribute, Item, UseTree, Visibility};

use crate::server::root;

/// Where each crate's sources are.
const CRATES: &[&str] = &[
    "shared/src",
    "worker/kernels/src",
    "worker/checkpoint/src",
    "worker/reference/src",
    "worker/src",
    "coordinator/src",
    "launcher/src",
    "client/src",
    "eval/src",
    "docs/learn/steps/src",
];

/// A module's path below its crate.
type Module = Vec<String>;

/// What a file has, tests aside.
#[derive(Default)]
struct Source {
    items: BTreeSet<String>,
    /// Paths of `use` lines, as written, by the name that they give.
    uses: Vec<(String, Vec<String>)>,
    /// Of those the ones that are only handed on.
    handed_on: BTreeSet<Vec<String>>,
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

fn leaves(tree: &UseTree, before: &mut Vec<String>, found: &mut Vec<(String, Vec<String>)>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            leaves(&path.tree, before, found);
            before.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| leaves(tree, before, found)),
        UseTree::Glob(_) => found.push(("*".into(), before.clone())),
        UseTree::Name(name) if name.ident == "self" => {
            found.push((before.last().cloned().unwrap_or_default(), before.clone()));
        }
        UseTree::Name(name) => {
            found.push((name.ident.to_string(), [&before[..], &[name.ident.to_string()]].concat()));
        }
        UseTree::Rename(rename) if rename.ident == "self" => found.push((rename.rename.to_string(), before.clone())),
        UseTree::Rename(rename) => {
            found.push((rename.rename.to_string(), [&before[..], &[rename.ident.to_string()]].concat()));
        }
    }
}

/// Words of a file outside of comments, `use` lines and tests.
fn own_words(text: &str) -> BTreeSet<&str> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut words = BTreeSet::new();
    let mut in_use = false;
    for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
        let begins = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "];
        in_use = in_use || begins.iter().any(|begin| line.starts_with(begin));
        if !in_use {
            words.extend(line.split(|c: char| !c.is_alphanumeric() && c != '_'));
        }
        in_use = in_use && !line.ends_with(';');
    }
    words
}

/// Reads the module in `file`, and those that it declares.
fn read(file: &Path, folder: &Path, module: Module, sources: &mut BTreeMap<Module, Source>) {
    let text = fs::read_to_string(file).unwrap();
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut source = Source::default();
    let words = own_words(&text);
    for item in &parsed.items {
        let name = match item {
            Item::Mod(item) if is_for_tests(&item.attrs) => continue,
            Item::Mod(item) if item.content.is_none() => {
                let name = item.ident.to_string();
                let path = item.attrs.iter().find(|attribute| attribute.path().is_ident("path"));
                // Another crate's file, read for its own sake.
                if path.is_none() {
                    let inner = folder.join(&name);
                    let beside = folder.join(format!("{name}.rs"));
                    let file = if beside.exists() { beside } else { inner.join("mod.rs") };
                    read(&file, &inner, [&module[..], &[name]].concat(), sources);
                }
                continue;
            }
            Item::Use(item) if is_for_tests(&item.attrs) => continue,
            Item::Use(item) => {
                let before = source.uses.len();
                leaves(&item.tree, &mut Vec::new(), &mut source.uses);
                let given = &source.uses[before..];
                if !matches!(item.vis, Visibility::Inherited) {
                    let only_given = given.iter().filter(|(name, _)| !words.contains(name.as_str()));
                    source.handed_on.extend(only_given.map(|(_, path)| path.clone()));
                }
                continue;
            }
            Item::Mod(item) => item.ident.to_string(),
            Item::Const(item) => item.ident.to_string(),
            Item::Enum(item) => item.ident.to_string(),
            Item::Fn(item) => item.sig.ident.to_string(),
            Item::Static(item) => item.ident.to_string(),
            Item::Struct(item) => item.ident.to_string(),
            Item::Trait(item) => item.ident.to_string(),
            Item::Type(item) => item.ident.to_string(),
            Item::Macro(item) => item.ident.as_ref().map(ToString::to_string).unwrap_or_default(),
            _ => continue,
        };
        source.items.insert(name);
    }
    sources.insert(module, source);
}

/// The module that defines what `path`, written in `from`, names; `None` where that is of another crate.
fn definer(sources: &BTreeMap<Module, Source>, from: &[String], path: &[String], depth: usize) -> Option<Module> {
    let mut at: Module = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" => from.to_vec(),
        "super" => from[..from.len() - 1].to_vec(),
        first if sources.contains_key(&[from, &[first.to_owned()]].concat()) => [from, &[first.to_owned()]].concat(),
        _ => return None,
    };
    for (i, segment) in path.iter().enumerate().skip(1) {
        let inner = [&at[..], std::slice::from_ref(segment)].concat();
        if segment == "super" {
            at.pop();
        } else if sources.contains_key(&inner) {
            at = inner;
        } else if sources[&at].items.contains(segment) {
            return Some(at);
        } else {
            let given = sources[&at].uses.iter().find(|(name, _)| name == segment);
            let globs = sources[&at].uses.iter().filter(|(name, _)| name == "*");
            let candidates = given.into_iter().map(|(_, path)| path.clone());
            let candidates = candidates.chain(globs.map(|(_, path)| [&path[..], &path_from(path, i)].concat()));
            assert!(depth < 8, "{path:?} in {from:?} leads in a circle of re-exports");
            return candidates.filter_map(|path| definer(sources, &at, &path, depth + 1)).next();
        }
    }
    Some(at)
}

fn path_from(path: &[String], i: usize) -> Vec<String> {
    path.get(i..).unwrap_or_default().to_vec()
}

/// Edges from file to file.
fn edges(folder: &Path) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut sources = BTreeMap::new();
    for file in ["lib.rs", "main.rs"] {
        if folder.join(file).exists() {
            read(&folder.join(file), folder, Vec::new(), &mut sources);
        }
    }
    let of = |(module, source): (&Module, &Source)| {
        let needed = source.uses.iter().filter(|(_, path)| !source.handed_on.contains(path));
        let used = needed.filter_map(|(_, path)| definer(&sources, module, path, 0));
        (module.clone(), used.filter(|used| used != module).collect())
    };
    sources.iter().map(of).collect()
}

/// The shortest way from a file back to itself.
fn circle(edges: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> Option<Vec<Module>> {
    let mut ways: Vec<Vec<Module>> = vec![vec![from.clone()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in edges.get(way.last()?).into_iter().flatten() {
                let longer_way = [&way[..], std::slice::from_ref(next)].concat();
                if next == from {
                    return Some(longer_way);
                }
                if seen.insert(next.clone()) {
                    longer.push(longer_way);
                }
            }
        }
        ways = longer;
    }
    None
}

#[test]
fn no_file_needs_one_that_needs_it() {
    let mut circles = BTreeSet::new();
    let mut count = 0;
    for name in CRATES {
        let folder: PathBuf = root().join(name);
        let edges = edges(&folder);
        count += edges.values().map(BTreeSet::len).sum::<usize>();
        for from in edges.keys() {
            if let Some(way) = circle(&edges, from) {
                let names: Vec<_> = way.iter().map(|module| module.join("::")).collect();
                let least = names.iter().min().unwrap().clone();
                circles.insert(format!("{name}, {least}: {}", names.join(" -> ")));
            }
        }
    }
    // Else the reading of sources would have found nothing.
    assert!(count > 400, "only {count} edges");
    assert!(circles.is_empty(), "circles:\n{}", circles.into_iter().collect::<Vec<_>>().join("\n"));
}
