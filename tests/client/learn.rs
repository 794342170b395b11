//! docs/learn as a new user follows it: what the chapters name exists, their commands are understood, their numbers are made.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{nanoinfer, text};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Name and text of every chapter.
fn chapters(folder: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let chapters = entries.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let named =
        |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap());
    let mut chapters: Vec<_> = chapters.map(named).collect();
    chapters.sort();
    assert_eq!(chapters.len(), 10, "four chapters and an index, in two languages");
    chapters
}

fn learn() -> Vec<(String, String)> {
    chapters(&root().join("docs/learn"))
}

/// Files under our folders, from the root.
fn files() -> Vec<PathBuf> {
    let mut folders = vec![root()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && name != ".git" {
                    folders.push(entry.path());
                }
            } else {
                files.push(entry.path().strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    files
}

/// Everything that is Rust, as one text.
fn source() -> String {
    let rust = files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    // What a test names does not exist by that.
    rust.filter(|path| !path.ends_with("learn.rs")).map(|path| fs::read_to_string(root().join(path)).unwrap()).collect()
}

/// Fenced blocks of a kind, and the text without any.
fn blocks<'a>(text: &'a str, kind: &str) -> (Vec<&'a str>, String) {
    let parts: Vec<&str> = text.split("```").collect();
    assert!(parts.len() % 2 == 1, "a block has no end");
    let fenced = parts.iter().skip(1).step_by(2);
    let of_kind = fenced.filter_map(|block| block.strip_prefix(kind)?.strip_prefix('\n')).collect();
    (of_kind, parts.iter().step_by(2).copied().collect())
}

/// Words in single backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// A text without what stands between marks, which a command has written.
fn without_figures(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some(begin) = rest.find("<!-- ") {
        kept += &rest[..begin];
        let name = rest[begin + 5..].split(" -->").next().unwrap();
        let close = format!("<!-- /{name} -->");
        rest = &rest[begin..];
        rest = &rest[rest.find(&close).unwrap_or_else(|| panic!("{name} is not closed")) + close.len()..];
    }
    kept + rest
}

/// Names of the marks.
fn marks(text: &str) -> BTreeSet<&str> {
    let marks = text.split("<!-- ").skip(1).map(|rest| rest.split(" -->").next().unwrap());
    marks.filter(|name| !name.starts_with('/')).collect()
}

fn program() -> String {
    fs::read_to_string(root().join("worker/reference/examples/conversation.rs")).unwrap()
}

/// The files that chapter 4 builds.
fn steps() -> String {
    let files = fs::read_dir(root().join("docs/learn/steps/src")).unwrap();
    files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

/// Whether a name in backticks still means something: a type, a function of ours, or what the program calls and binds.
fn is_known(name: &str, source: &str, program: &str) -> bool {
    let holds = |text: &str, name: &str| {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|word| word == name)
    };
    name.split("::").all(|part| {
        let is_type = part.starts_with(|c: char| c.is_ascii_uppercase());
        (is_type && holds(source, part)) || source.contains(&format!("fn {part}(")) || holds(program, part)
    })
}

#[test]
fn files_links_types_and_functions_of_the_chapters_exist() {
    let (files, source, program) = (files(), source(), program() + &steps());
    let commands_and_models = ["nanoinfer", "nanoinfer-launch", "gpt2"];
    for (chapter, text) in learn() {
        let (_, prose) = blocks(&text, "sh");
        let prose = without_figures(&prose);
        // Commands have a test of their own.
        let is_command =
            |word: &&str| word.contains(' ') || word.starts_with('-') || commands_and_models.contains(word);
        for word in quoted(&prose).into_iter().filter(|word| !is_command(word)) {
            if word.contains('/') {
                let path = Path::new(word);
                let exists = files.iter().any(|file| file == path || file.starts_with(path));
                assert!(exists, "{chapter} names the file {word}");
            } else if word.parse::<u32>().is_err() {
                assert!(is_known(word, &source, &program), "{chapter} names {word}");
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = root().join("docs/learn").join(link);
            assert!(link.starts_with("http") || target.exists(), "{chapter} links to {link}");
        }
    }
}

#[test]
fn names_that_mean_nothing_are_found() {
    let (source, program) = (source(), program());
    for known in ["Gpt2::load", "StepPlan", "schedule", "softmax_last_dim", "wte"] {
        assert!(is_known(known, &source, &program), "{known}");
    }
    for unknown in ["Gpt2::unload", "StepPlane", "schedule_all", "hard_max"] {
        assert!(!is_known(unknown, &source, &program), "{unknown}");
    }
}

#[test]
fn lines_of_the_program_are_quoted_as_they_are() {
    let program = program();
    for language in ["", ".zh-CN"] {
        let text = fs::read_to_string(root().join(format!("docs/learn/1-understand{language}.md"))).unwrap();
        let (quotes, _) = blocks(&text, "rust");
        assert_eq!(quotes.len(), 5);
        for quote in quotes {
            assert!(program.contains(quote), "the program has no longer:\n{quote}");
        }
    }
}

#[test]
fn commands_of_the_chapters_are_understood() {
    let mut commands = BTreeSet::new();
    for (_, text) in learn() {
        let (scripts, prose) = blocks(&text, "sh");
        let prose = without_figures(&prose);
        let lines = scripts.into_iter().flat_map(str::lines).map(str::to_owned);
        commands.extend(lines.chain(quoted(&prose).into_iter().map(str::to_owned)));
    }
    let mut understood = 0;
    for command in &commands {
        let words = words(command);
        let arguments = match words.first().map_or("", String::as_str) {
            "nanoinfer" => words[1..].to_vec(),
            "nanoinfer-launch" => [&["serve".to_owned()], &words[1..]].concat(),
            // A flag that is named alone, and what may follow it.
            flag if flag.starts_with("--") && flag != "--no-cache" => {
                let helps = ["lesson", "serve", "generate"].map(|verb| nanoinfer(&[verb, "--help"]).output().unwrap());
                assert!(helps.iter().any(|help| text(help).contains(flag)), "no command knows {flag}");
                continue;
            }
            _ => continue,
        };
        // Everything before is read first.
        let output = nanoinfer(&[]).args(arguments).arg("--help").output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        understood += 1;
    }
    assert!(understood > 12, "{commands:?}");
}

/// A command line's words; what stands between quotation marks is one.
fn words(command: &str) -> Vec<String> {
    let parts = command.split('"').enumerate();
    parts
        .flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .filter(|word| !word.is_empty())
        .collect()
}

#[test]
fn no_number_of_the_chapters_was_typed_by_hand() {
    for (chapter, text) in learn() {
        let (_, prose) = blocks(&text, "sh");
        let prose = without_figures(&prose);
        for line in prose.lines().filter(|line| !line.starts_with('#')) {
            // Lists are numbered, and code, addresses and names have digits of their own.
            let line = line.split_once(". [").map_or(line, |(_, rest)| rest);
            let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
            let words = outside.split(|c: char| !(c.is_ascii_alphanumeric() || "-./:".contains(c)));
            for word in words.filter(|word| !word.starts_with("http") && !word.contains(".md")) {
                let is_name = word.starts_with(|c: char| c.is_ascii_alphabetic());
                assert!(is_name || !word.contains(|c: char| c.is_ascii_digit()), "{chapter}: {word} in: {line}");
            }
        }
        for line in text.lines().filter(|line| line.starts_with("<!-- ")) {
            // Markdown would take the rest of such a line for HTML.
            assert!(line.ends_with(" -->") && line.matches("<!--").count() <= 2, "{chapter}: {line}");
        }
    }
}

#[test]
fn both_languages_show_the_same_figures() {
    let learn = learn();
    for (chapter, text) in learn.iter().filter(|(name, _)| !name.ends_with(".zh-CN.md")) {
        let (_, chinese) = learn.iter().find(|(name, _)| *name == chapter.replace(".md", ".zh-CN.md")).unwrap();
        assert_eq!(marks(text), marks(chinese), "{chapter}");
        assert_eq!(blocks(text, "sh").0, blocks(chinese, "sh").0, "{chapter}");
    }
}

#[test]
fn one_command_writes_all_figures_and_draws_the_pictures() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in learn() {
        // Nothing that was there before may pass for a figure.
        let empty = marks(&text).into_iter().fold(text.clone(), |text, name| {
            let (open, close) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
            let parts: Vec<String> = text.split(&open).map(str::to_owned).collect();
            let emptied = parts[1..].iter().map(|part| part[part.find(&close).unwrap()..].to_owned());
            [parts[0].clone()].into_iter().chain(emptied).collect::<Vec<_>>().join(&open)
        });
        fs::write(folder.path().join(name), empty).unwrap();
    }
    let output = nanoinfer(&["lesson", "--rounds", "1", "--write", folder.path().to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (name, text) in chapters(folder.path()) {
        for mark in marks(&text) {
            let (open, close) = (format!("<!-- {mark} -->"), format!("<!-- /{mark} -->"));
            let filled = text.split(&open).skip(1).all(|part| !part[..part.find(&close).unwrap()].trim().is_empty());
            assert!(filled, "{name}: {mark} is empty");
        }
        // What was not measured is as it was.
        let committed = fs::read_to_string(root().join("docs/learn").join(&name)).unwrap();
        assert_eq!(without_figures(&text), without_figures(&committed), "{name}");
    }
    let pictures = files().into_iter().filter(|path| path.parent() == Some(Path::new("docs/learn")));
    let pictures: Vec<PathBuf> = pictures.filter(|path| path.extension().is_some_and(|kind| kind == "svg")).collect();
    assert_eq!(pictures.len(), 12);
    for picture in pictures.iter().map(|path| path.file_name().unwrap().to_str().unwrap()) {
        let svg = fs::read_to_string(folder.path().join(picture)).unwrap();
        assert!(svg.matches("<rect").count() > 10 && svg.contains("prefers-color-scheme:dark"), "{picture}");
    }
}

#[test]
fn a_lesson_is_a_page_and_data_too() {
    let folder = tempfile::tempdir().unwrap();
    let page_path = folder.path().join("lesson.html");
    let output = nanoinfer(&["lesson", "1", "--json", "--html", page_path.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_str(text(&output)).unwrap();
    assert_eq!((&results["lesson"], &results["facts"]["1.vocab"]), (&Value::from(1), &Value::from("4096")));
    let growth = results["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == "1.growth").unwrap();
    assert_eq!(growth["rows"].as_array().unwrap().len(), 5, "from 16 to 256 tokens");
    let page = fs::read_to_string(&page_path).unwrap();
    // The chapter's prose with figures of this machine; nothing is loaded from anywhere.
    assert!(
        page.contains("<h2>Attention: tokens look at each other</h2>")
            && page.contains("<strong>Where the parameters are</strong>")
    );
    assert!(!["src=\"http", "<script", "<link", "<!-- /"].iter().any(|outside| page.contains(outside)));
    let chinese = nanoinfer(&["lesson", "1", "--lang", "zh", "--html", page_path.to_str().unwrap()]).output().unwrap();
    assert!(text(&chinese).starts_with("课程 1: 从检查点到对话\n"), "{}", text(&chinese));
    assert!(fs::read_to_string(&page_path).unwrap().contains("<strong>参数在哪里</strong>"));
    let refused = nanoinfer(&["lesson", "5"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
}
