//! What the options mean together: flags win over the environment, the environment over the TOML file, that over the
//! defaults.
//!
//! A TOML file is read as the flags it spells, by the same parser: one set of names, values and messages.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::CommandFactory;
use nanoinfer_coordinator::http::{ApiKey, HeaderValue, HttpOptions};

use super::options::{CommandLine, ServeOptions, TypedComm, TypedDType, TypedKvDType};
use crate::{
    closest,
    cluster::{ClusterConfig, CommChoice},
    device::DeviceChoice,
    model::Caches,
    progress,
    spawn::WorkerBinary,
    utf8,
};
use nanoinfer_shared::protocol::DType;

/// Logged unless something else is asked for: lifecycle, no steps. A terminal is told of a start in other ways.
pub(super) fn default_log() -> &'static str {
    if progress::is_watched() { "warn,nanoinfer_launch::supervise=info" } else { "info" }
}

/// Everything that `nanoinfer-launch` needs to know.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) cluster: ClusterConfig,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) http: HttpOptions,
    pub(super) shutdown_timeout: Duration,
    /// Print the plan and stop.
    pub(super) plan: bool,
}

/// Options that contradict one another, or a configuration file that says what no option does.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    /// The file itself.
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// Not TOML.
    #[error("{} is not TOML: {reason}", .path.display())]
    Syntax { path: PathBuf, reason: String },
    /// A key that is no option.
    #[error("{}: unknown key `{key}`{}", .path.display(), .suggestion.as_ref().map_or(String::new(), |s| format!("; did you mean `{s}`?")))]
    UnknownKey { path: PathBuf, key: String, suggestion: Option<String> },
    /// A value that its option does not take.
    #[error("{}: `{key}`: {reason}", .path.display())]
    Value { path: PathBuf, key: String, reason: String },
    /// An API key that cannot be sent in a header, or is none.
    #[error("{from}: an API key is one line of visible ASCII characters\n  hint: openssl rand -hex 32 makes one")]
    ApiKey { from: String },
    /// An origin that no browser sends.
    #[error(
        "--cors-origin {origin} is no origin\n  hint: scheme, host and port, like https://chat.example or http://localhost:3000"
    )]
    Origin { origin: String },
    /// A host that no request names.
    #[error("--allowed-host {host} is no name\n  hint: a name without scheme or port, like chat.example")]
    AllowedHost { host: String },
    /// A log filter that is none.
    #[error("--log {filter}: {reason}")]
    Log { filter: String, reason: String },
}

impl Config {
    /// Adds the file and the defaults to what was typed.
    pub(super) fn new(typed: ServeOptions, caches: &Caches) -> Result<Self, ConfigError> {
        let options = match &typed.config {
            Some(path) => {
                let file = read_file(path.clone())?;
                typed.or(file)
            }
            None => typed,
        };
        let dtype = match options.dtype {
            None | Some(TypedDType::Auto) => None,
            Some(TypedDType::F32) => Some(DType::F32),
            Some(TypedDType::Bf16) => Some(DType::Bf16),
            Some(TypedDType::Int8) => Some(DType::Int8),
            Some(TypedDType::F16) => Some(DType::F16),
        };
        let comm = match options.comm {
            None | Some(TypedComm::Auto) => CommChoice::Auto,
            Some(TypedComm::Shm) => CommChoice::Shm,
            Some(TypedComm::Tcp) => CommChoice::Tcp,
            Some(TypedComm::Nccl) => CommChoice::Nccl,
        };
        let defaults = ClusterConfig::new(caches.clone());
        let http = HttpOptions::default();
        let count = |typed: Option<u32>, default: usize| typed.map_or(default, |n| n as usize);
        let cluster = ClusterConfig {
            model: options.model,
            revision: options.revision,
            served_name: options.served_model_name,
            nproc: count(options.nproc, defaults.nproc),
            device: options.device.unwrap_or(DeviceChoice::Auto),
            dtype,
            kv_dtype: match options.kv_dtype {
                None | Some(TypedKvDType::Auto) => None,
                Some(TypedKvDType::F32) => Some(DType::F32),
                Some(TypedKvDType::Bf16) => Some(DType::Bf16),
                Some(TypedKvDType::Int8) => Some(DType::Int8),
            },
            comm,
            threads: options.threads.map(|n| n as usize),
            isa: options.isa,
            kv_memory: options.kv_memory,
            max_seqs: count(options.max_seqs, defaults.max_seqs),
            max_batched_tokens: count(options.max_batched_tokens, defaults.max_batched_tokens),
            max_queue: count(options.max_queue, defaults.max_queue),
            max_queue_tokens: count(options.max_queue_tokens, defaults.max_queue_tokens),
            prefix_cache: !options.no_prefix_cache,
            trace: options.trace.map(|path| std::path::absolute(&path).unwrap_or(path)),
            worker_binary: Some(WorkerBinary::ThisProgram),
            log: options.log.unwrap_or_else(|| default_log().into()),
            ..defaults
        };
        Ok(Self {
            cluster,
            host: options.host.unwrap_or_else(|| "127.0.0.1".into()),
            port: options.port.unwrap_or(8000),
            http: HttpOptions {
                max_request_memory: options.max_request_memory.map_or(http.max_request_memory, |size| size.0 as usize),
                api_key: api_key(options.api_key, options.api_key_file)?,
                cors_origins: cors_origins(options.cors_origin.unwrap_or_default())?,
                allowed_hosts: allowed_hosts(options.allowed_host.unwrap_or_default())?,
                ..http
            },
            shutdown_timeout: options.shutdown_timeout.unwrap_or(Duration::from_secs(30)),
            plan: options.plan,
        })
    }
}

fn api_key(key: Option<String>, file: Option<PathBuf>) -> Result<Option<ApiKey>, ConfigError> {
    let (key, from) = match (key, file) {
        (Some(key), _) => (key, "--api-key".to_owned()),
        (None, Some(path)) => {
            let text = utf8::read_file(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            (text.lines().next().unwrap_or_default().trim().to_owned(), path.display().to_string())
        }
        (None, None) => return Ok(None),
    };
    let sendable = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    if sendable { Ok(Some(ApiKey::new(&key))) } else { Err(ConfigError::ApiKey { from }) }
}

fn cors_origins(origins: Vec<String>) -> Result<Vec<HeaderValue>, ConfigError> {
    let read = |origin: String| {
        let trimmed = origin.trim().trim_end_matches('/');
        let has_scheme = trimmed.split_once("://").is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
        let value = HeaderValue::from_str(trimmed).ok().filter(|_| has_scheme || trimmed == "*");
        value.ok_or(ConfigError::Origin { origin })
    };
    origins.into_iter().map(read).collect()
}

fn allowed_hosts(hosts: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let read = |host: String| {
        let trimmed = host.trim().trim_end_matches('.');
        let is_name =
            !trimmed.is_empty() && trimmed.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if is_name || trimmed == "*" { Ok(trimmed.to_owned()) } else { Err(ConfigError::AllowedHost { host }) }
    };
    hosts.into_iter().map(read).collect()
}

impl ServeOptions {
    /// These options, and where one is absent the other's.
    fn or(self, other: Self) -> Self {
        Self {
            config: self.config,
            model: self.model.or(other.model),
            revision: self.revision.or(other.revision),
            served_model_name: self.served_model_name.or(other.served_model_name),
            nproc: self.nproc.or(other.nproc),
            device: self.device.or(other.device),
            dtype: self.dtype.or(other.dtype),
            kv_dtype: self.kv_dtype.or(other.kv_dtype),
            host: self.host.or(other.host),
            port: self.port.or(other.port),
            // A key and a file of one exclude one another, wherever they stand.
            api_key: if self.api_key_file.is_some() { self.api_key } else { self.api_key.or(other.api_key) },
            api_key_file: self.api_key_file.or(other.api_key_file),
            cors_origin: self.cors_origin.or(other.cors_origin),
            allowed_host: self.allowed_host.or(other.allowed_host),
            threads: self.threads.or(other.threads),
            isa: self.isa.or(other.isa),
            comm: self.comm.or(other.comm),
            kv_memory: self.kv_memory.or(other.kv_memory),
            max_seqs: self.max_seqs.or(other.max_seqs),
            max_batched_tokens: self.max_batched_tokens.or(other.max_batched_tokens),
            max_queue: self.max_queue.or(other.max_queue),
            max_queue_tokens: self.max_queue_tokens.or(other.max_queue_tokens),
            max_request_memory: self.max_request_memory.or(other.max_request_memory),
            no_prefix_cache: self.no_prefix_cache || other.no_prefix_cache,
            trace: self.trace.or(other.trace),
            shutdown_timeout: self.shutdown_timeout.or(other.shutdown_timeout),
            plan: self.plan || other.plan,
            log: self.log.or(other.log),
            parent: self.parent,
        }
    }
}

/// The options that a TOML file spells. An option that the environment sets too appears here with that value, which
/// does not matter: the environment has won already.
fn read_file(path: PathBuf) -> Result<ServeOptions, ConfigError> {
    let text = utf8::read_file(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax { path: path.clone(), reason: e.to_string() })?;
    let command = CommandLine::command();
    let known: Vec<&str> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter_map(|arg| arg.get_long())
        .filter(|name| !matches!(*name, "config" | "help" | "version"))
        .collect();
    let is_switch = |name: &str| {
        command.get_arguments().any(|arg| arg.get_long() == Some(name) && !arg.get_action().takes_values())
    };
    let mut options = ServeOptions::default();
    for (key, value) in table {
        // `max_seqs` is as good as `max-seqs`.
        let name = key.replace('_', "-");
        if !known.contains(&name.as_str()) {
            let suggestion = closest(&name, known.iter().copied()).map(String::from);
            return Err(ConfigError::UnknownKey { path, key, suggestion });
        }
        let wrong = |reason: String| ConfigError::Value { path: path.clone(), key: key.clone(), reason };
        let value = match value {
            toml::Value::String(text) => Some(text),
            toml::Value::Integer(number) => Some(number.to_string()),
            toml::Value::Boolean(true) if is_switch(&name) => None,
            toml::Value::Boolean(false) if is_switch(&name) => continue,
            other => return Err(wrong(format!("a {} is not what it takes", other.type_str()))),
        };
        let flag = value.map_or(format!("--{name}"), |value| format!("--{name}={value}"));
        let one = CommandLine::parse_from_all([OsString::from("nanoinfer-launch"), flag.into()])
            .map_err(|error| wrong(reason(&error.to_string())))?;
        options = options.or(one.serve);
    }
    Ok(options)
}

/// The first paragraph of a message of the parser, without its "error: ", and what it suggests.
pub(super) fn reason(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("For more"));
    lines.collect::<Vec<_>>().join("; ").trim_start_matches("error: ").into()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{model::HubAccess, size::ByteSize};

    fn meaning(args: &[&str]) -> Result<Config, String> {
        let hub = HubAccess::offline("hub".into());
        let typed = CommandLine::parse_from_all(["nanoinfer-launch"].iter().chain(args)).map_err(|e| e.to_string())?;
        Config::new(typed.serve, &Caches { demo: Vec::new(), hub }).map_err(|e| e.to_string())
    }

    fn with_file(toml: &str, args: &[&str]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        fs::write(&path, toml).unwrap();
        meaning(&[&["--config", path.to_str().unwrap()], args].concat())
    }

    #[test]
    fn nothing_typed_serves_the_demo_model_on_loopback() {
        let config = meaning(&[]).unwrap();
        assert_eq!((config.host.as_str(), config.port, config.plan), ("127.0.0.1", 8000, false));
        assert_eq!((config.cluster.model, config.cluster.nproc), (None, 1));
        assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let toml = "model = \"gpt2\"\nport = 9000\nmax_seqs = 4\nkv-memory = \"512MiB\"\nmax-request-memory = \"64MiB\"\nplan = true\nno_prefix_cache = true\n";
        let config = with_file(toml, &["--port", "0", "--dtype", "fp32"]).unwrap();
        assert_eq!((config.port, config.plan, config.cluster.prefix_cache), (0, true, false));
        assert_eq!(config.cluster.model.as_deref(), Some("gpt2"));
        assert_eq!((config.cluster.max_seqs, config.cluster.max_queue), (4, 256));
        assert_eq!(config.cluster.kv_memory, Some(ByteSize(512 << 20)));
        assert_eq!((config.http.max_request_memory, config.http.max_body_bytes), (64 << 20, 8 << 20));
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
        assert_eq!(with_file("\u{feff}port = 9000\r\n", &[]).unwrap().port, 9000);
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
        assert!(meaning(&["--cors-origin", "chat.example"]).unwrap_err().contains("https://chat.example"));
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
        let config = with_file("device = \"cuda:1,0\"\ndtype = \"f16\"\ncomm = \"nccl\"", &[]).unwrap().cluster;
        assert_eq!((config.device, config.dtype), (DeviceChoice::Cuda(vec![1, 0]), Some(DType::F16)));
        assert_eq!(config.comm, CommChoice::Nccl);
        assert_eq!(meaning(&[]).unwrap().cluster.device, DeviceChoice::Auto);
        assert!(meaning(&["--device", "tpu"]).unwrap_err().contains("none of auto, cpu, cuda"));
        assert!(with_file("device = \"cuda:x\"", &[]).unwrap_err().contains("`device`"));
    }

    #[test]
    fn every_example_in_configs_is_understood() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty());
        for file in files {
            meaning(&["--config", file.to_str().unwrap()]).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
}
