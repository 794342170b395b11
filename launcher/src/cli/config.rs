//! What the options mean together: flags win over the environment, the environment over the TOML file, that over the
//! defaults.
//!
//! A TOML file is read as the flags it spells, by the same parser: one set of names, values and messages.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::parser::ValueSource;
use nanoinfer_coordinator::http::{ApiKey, HeaderValue, HttpOptions};

use super::options::{CommandLine, ServeOptions, Subcommand};
use crate::{
    closest,
    error::LaunchError,
    log::{Log, LogFormat},
    model::Caches,
    progress,
    spawn::WorkerBinary,
    utf8,
};

/// Logged unless something else is asked for: lifecycle, no steps. A terminal is told of a start in other ways.
fn default_filter(format: LogFormat) -> &'static str {
    let is_told = format == LogFormat::Text && progress::is_watched();
    if is_told { "warn,nanoinfer_launch::supervise=info" } else { "info" }
}

/// Everything that `nanoinfer-launch` needs to know.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) options: ServeOptions,
    pub(super) http: HttpOptions,
}

impl Config {
    /// What was typed in `args`, with what a file adds.
    pub(super) fn new(typed: ServeOptions, args: &[OsString], caches: Caches) -> Result<Self, LaunchError> {
        let mut options = match &typed.config {
            Some(path) => with_file(path, args)?,
            None => typed,
        };
        let defaults = HttpOptions::default();
        let http = HttpOptions {
            max_request_memory: options.max_request_memory.map_or(defaults.max_request_memory, |size| size.0 as usize),
            api_key: api_key(options.api_key.take(), options.api_key_file.take())?,
            cors_origins: cors_origins(&options.cors_origin)?,
            allowed_hosts: allowed_hosts(&options.allowed_host)?,
            ..defaults
        };
        let cluster = &mut options.cluster;
        cluster.caches = caches;
        cluster.worker_binary = Some(WorkerBinary::ThisProgram);
        let format = options.log_format;
        cluster.log = Log { filter: options.log.take().unwrap_or_else(|| default_filter(format).into()), format };
        Ok(Self { options, http })
    }
}

/// The text of a file that an option names.
fn read(path: &Path) -> Result<String, LaunchError> {
    utf8::read_file(path).map_err(|error| LaunchError::Config(format!("cannot read {}: {error}", path.display())))
}

fn api_key(key: Option<String>, file: Option<PathBuf>) -> Result<Option<ApiKey>, LaunchError> {
    let (key, from) = match (key, file) {
        (Some(key), _) => (key, "--api-key".to_owned()),
        (None, Some(path)) => {
            let text = read(&path)?;
            (text.lines().next().unwrap_or_default().trim().to_owned(), path.display().to_string())
        }
        (None, None) => return Ok(None),
    };
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let problem = format!("{from}: an API key is one line of visible ASCII characters");
        return Err(LaunchError::usage(problem, "openssl rand -hex 32 makes one"));
    }
    Ok(Some(ApiKey::new(&key)))
}

fn cors_origins(origins: &[String]) -> Result<Vec<HeaderValue>, LaunchError> {
    let read = |origin: &String| {
        let trimmed = origin.trim().trim_end_matches('/');
        let is_host = |host: &str| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        let has_scheme = trimmed.split_once("://").is_some_and(|(_, host)| is_host(host));
        let value = HeaderValue::from_str(trimmed).ok().filter(|_| has_scheme || trimmed == "*");
        let hint = "scheme, host and port, like https://chat.example or http://localhost:3000";
        value.ok_or_else(|| LaunchError::usage(format!("--cors-origin {origin} is no origin"), hint))
    };
    origins.iter().map(read).collect()
}

fn allowed_hosts(hosts: &[String]) -> Result<Vec<String>, LaunchError> {
    let read = |host: &String| {
        let trimmed = host.trim().trim_end_matches('.');
        let is_name =
            !trimmed.is_empty() && trimmed.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if is_name || trimmed == "*" {
            return Ok(trimmed.to_owned());
        }
        let hint = "a name without scheme or port, like chat.example";
        Err(LaunchError::usage(format!("--allowed-host {host} is no name"), hint))
    };
    hosts.iter().map(read).collect()
}

/// What is typed in `args`, and what the file at `path` spells of all else.
fn with_file(path: &Path, args: &[OsString]) -> Result<ServeOptions, LaunchError> {
    let path_shown = path.display();
    let text = read(path)?;
    let not_toml = |error: toml::de::Error| {
        let hint =
            if is_bare_word(&text, error.span()) { "  hint: texts stand in quotes, like model = \"gpt2\"" } else { "" };
        LaunchError::Config(format!("{path_shown} is not TOML: {error}{hint}"))
    };
    let table: toml::Table = text.parse().map_err(not_toml)?;
    let (command, matches) = CommandLine::matches(args).expect("it was parsed before");
    let matches = matches.subcommand().map_or(&matches, |(_, of_it)| of_it);
    // A key and a file of one exclude one another, wherever they stand.
    let place = |id: &str| if id == "api_key_file" { "api_key".to_owned() } else { id.to_owned() };
    let is_said = |id: &&clap::Id| matches.value_source(id.as_str()) != Some(ValueSource::DefaultValue);
    let mut said: Vec<String> = matches.ids().filter(is_said).map(|id| place(id.as_str())).collect();
    let known: Vec<(&str, &clap::Arg)> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter_map(|arg| Some((arg.get_long()?, arg)))
        .filter(|(name, _)| !matches!(*name, "config" | "help" | "version"))
        .collect();
    let mut args = args.to_vec();
    for (key, value) in table {
        // `max_seqs` is as good as `max-seqs`.
        let name = key.replace('_', "-");
        let Some((_, arg)) = known.iter().find(|(known, _)| *known == name) else {
            let near = closest(&name, known.iter().map(|(name, _)| *name));
            let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            return Err(LaunchError::Config(format!("{path_shown}: unknown key `{key}`{near}")));
        };
        let is_switch = !arg.get_action().takes_values();
        let wrong = |reason: &str| LaunchError::Config(format!("{path_shown}: `{key}`: {reason}"));
        let flag = match value {
            toml::Value::String(text) => format!("--{name}={text}"),
            toml::Value::Integer(number) => format!("--{name}={number}"),
            toml::Value::Float(number) => format!("--{name}={number}"),
            toml::Value::Boolean(true) if is_switch => format!("--{name}"),
            toml::Value::Boolean(false) if is_switch => continue,
            other => return Err(wrong(&format!("a {} is not what it takes", other.type_str()))),
        };
        CommandLine::parse_from_all(["nanoinfer-launch", &flag]).map_err(|error| wrong(&reason(&error.to_string())))?;
        let place = place(arg.get_id().as_str());
        if !said.contains(&place) {
            said.push(place);
            args.push(flag.into());
        }
    }
    let whole = CommandLine::parse_from_all(args).expect("what is understood alone is understood together");
    match whole.command {
        Some(Subcommand::Node(options)) => Ok(options.serve),
        _ => Ok(whole.serve),
    }
}

/// Whether what is wrong in a TOML file stands on a line whose value is a word without quotes.
fn is_bare_word(text: &str, wrong: Option<std::ops::Range<usize>>) -> bool {
    let at = wrong.map_or(text.len(), |range| range.start.min(text.len()));
    let line = text.get(..at).map_or("", |before| &text[before.rfind('\n').map_or(0, |end| end + 1)..]).lines().next();
    let value = line.and_then(|line| line.split_once('=')).map(|(_, value)| value.trim());
    value.is_some_and(|value| value.starts_with(|first: char| first.is_alphabetic() || "./~".contains(first)))
}

/// The first paragraph of a message of the parser, without its "error: ", and what it suggests.
pub(super) fn reason(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("For more"));
    lines.collect::<Vec<_>>().join("; ").trim_start_matches("error: ").into()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use nanoinfer_shared::protocol::DType;

    use super::*;
    use crate::{
        config::{CommChoice, DeviceChoice},
        size::ByteSize,
    };

    fn meaning(args: &[&str]) -> Result<Config, String> {
        let args: Vec<OsString> = ["nanoinfer-launch"].iter().chain(args).map(OsString::from).collect();
        let typed = CommandLine::parse_from_all(&args).map_err(|e| e.to_string())?;
        Config::new(typed.serve, &args, Caches::nowhere()).map_err(|e| e.to_string())
    }

    fn with_file(toml: &str, args: &[&str]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        fs::write(&path, toml).unwrap();
        meaning(&[&["--config", path.to_str().unwrap()], args].concat())
    }

    #[test]
    fn nothing_typed_serves_the_demo_model_on_loopback() {
        let config = meaning(&[]).unwrap().options;
        assert_eq!((config.host.as_str(), config.port, config.plan), ("127.0.0.1", 8000, false));
        assert_eq!((config.cluster.model, config.cluster.nproc), (None, 1));
        assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let config =
            with_file("max_queue = 7\nmax_queue_tokens = 9\nmax-model-len = 100", &["--max-queue-tokens", "8"])
                .unwrap()
                .options;
        assert_eq!(config.cluster.max_model_len, Some(100));
        assert_eq!((config.cluster.max_queue, config.cluster.max_queue_tokens), (7, 8));
        let toml = "model = \"gpt2\"\nport = 9000\nmax_seqs = 4\nkv-memory = \"512MiB\"\nmax-request-memory = \"64MiB\"\nplan = true\nno_prefix_cache = true\nlogit-softcap = 20.0\n";
        let Config { options: config, http } = with_file(toml, &["--port", "0", "--dtype", "fp32"]).unwrap();
        assert_eq!((config.port, config.plan, config.cluster.prefix_cache), (0, true, false));
        assert_eq!(config.cluster.model.as_deref(), Some("gpt2"));
        assert_eq!((config.cluster.max_seqs, config.cluster.max_queue), (4, 256));
        assert_eq!((config.cluster.kv_memory, config.cluster.logit_softcap), (Some(ByteSize(512 << 20)), Some(20.0)));
        assert_eq!((http.max_request_memory, http.max_body_bytes), (64 << 20, 8 << 20));
    }

    #[test]
    fn a_file_with_a_slip_is_refused_by_name() {
        for (toml, parts) in [
            ("nprocs = 2", &["unknown key `nprocs`", "did you mean `nproc`?"][..]),
            ("flavour = 2", &["unknown key `flavour`"]),
            ("parent = 2", &["unknown key `parent`"]),
            ("nproc = 0", &["`nproc`", "0"]),
            ("nproc = [1]", &["`nproc`", "array"]),
            ("comm = \"shn\"", &["`comm`", "shm"]),
            ("kv-memory = \"lots\"", &["`kv-memory`", "512MiB"]),
            ("port =", &["not TOML"]),
            ("port = 1\nmodel = nano\n", &["not TOML", "hint: texts stand in quotes, like model = \"gpt2\""]),
            ("model = ./gpt2", &["hint: texts stand in quotes"]),
        ] {
            let message = with_file(toml, &[]).unwrap_err();
            for part in parts {
                assert!(message.contains(part), "{part} in {message}");
            }
        }
        assert!(meaning(&["--config", "/nonexistent.toml"]).unwrap_err().contains("/nonexistent.toml"));
    }

    #[test]
    fn files_begin_as_other_systems_begin_them() {
        assert_eq!(with_file("\u{feff}port = 9000\r\n", &[]).unwrap().options.port, 9000);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let meant = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            meaning(&["--api-key-file", file.to_str().unwrap()])
        };
        assert_eq!(meant("\u{feff}s3cret\r\n".as_bytes()).unwrap().http.api_key, Some(ApiKey::new("s3cret")));
        let error = meant(b"\xff\xfes\x003\0").unwrap_err();
        assert!(error.contains("key: UTF-16, where UTF-8 is expected\n  hint: iconv -f UTF-16"), "{error}");
    }

    #[test]
    fn keys_and_origins_are_read_and_their_slips_named() {
        let config = meaning(&["--cors-origin", "https://chat.example/,http://localhost:3000"]).unwrap();
        assert_eq!(config.http.cors_origins, ["https://chat.example", "http://localhost:3000"]);
        assert_eq!(config.http.api_key, None);
        for slip in ["chat.example", "https://", "https://a b", "https://a/b"] {
            assert!(meaning(&["--cors-origin", slip]).unwrap_err().contains("https://chat.example"), "{slip}");
        }
        assert!(meaning(&["--served-model-name", ""]).unwrap_err().contains("--served-model-name"));
        let config = meaning(&["--allowed-host", "chat.example.,ai_1", "--allowed-host", "192.168.0.7"]).unwrap();
        assert_eq!(config.http.allowed_hosts, ["chat.example", "ai_1", "192.168.0.7"]);
        assert_eq!(with_file("allowed-host = \"*\"", &[]).unwrap().http.allowed_hosts, ["*"]);
        for slip in ["https://chat.example", "chat.example:443", "a/b", "a b"] {
            assert!(meaning(&["--allowed-host", slip]).unwrap_err().contains("like chat.example"), "{slip}");
        }

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        fs::write(&file, "s3cret\n# of the house\n").unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(meaning(&["--api-key-file", file]).unwrap().http.api_key, Some(ApiKey::new("s3cret")));
        assert_eq!(
            with_file("api-key = \"other\"", &["--api-key-file", file]).unwrap().http.api_key,
            Some(ApiKey::new("s3cret"))
        );
        assert!(meaning(&["--api-key", "two words"]).unwrap_err().contains("--api-key: an API key is one line"));
        assert!(meaning(&["--api-key", "a", "--api-key-file", file]).unwrap_err().contains("cannot be used with"));
        assert!(meaning(&["--api-key-file", "/nonexistent"]).unwrap_err().contains("/nonexistent"));
    }

    #[test]
    fn devices_and_types_are_read_from_flags_and_files() {
        let config = with_file("device = \"cuda:1,0\"\ndtype = \"f16\"\ncomm = \"nccl\"", &[]).unwrap().options.cluster;
        assert_eq!((config.device, config.dtype), (DeviceChoice::Cuda(vec![1, 0]), Some(DType::F16)));
        assert_eq!(config.comm, CommChoice::Nccl);
        assert_eq!(meaning(&[]).unwrap().options.cluster.device, DeviceChoice::Auto);
        assert!(meaning(&["--device", "tpu"]).unwrap_err().contains("none of auto, cpu, cuda"));
        assert!(with_file("device = \"cuda:x\"", &[]).unwrap_err().contains("`device`"));
    }

    #[test]
    fn every_example_in_configs_is_understood() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
        assert!(!files.is_empty());
        for file in files {
            meaning(&["--config", file.to_str().unwrap()]).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
}
