//! Where the environment says that models are: the variables that all Hugging Face tools share, and XDG's. And what to say
//! of our own, which the parser reads, where they are wrong.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::CommandFactory;

use super::options::CommandLine;
use crate::{
    closest,
    model::{Caches, HubAccess},
    proxy::Proxies,
    say,
};

/// How all variables of ours begin.
const PREFIX: &str = "NANOINFER_";
const PUBLIC_HUB: &str = "https://huggingface.co";

/// Where programs keep what they remember of their user, as XDG has it; none without a home.
pub fn state_folder() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("nanoinfer"))
}

/// Caches for downloaded and unpacked models.
pub fn caches() -> Caches {
    caches_of(&|name| env::var(name).ok().filter(|value| !value.is_empty()), &env::temp_dir())
}

/// `variable` looks one up; an empty one counts as none. What is Hugging Face's is read as huggingface_hub's `constants.py`
/// reads it.
fn caches_of(variable: &dyn Fn(&str) -> Option<String>, temporary: &Path) -> Caches {
    let path = |name: &str| variable(name).map(PathBuf::from);
    let user_cache = path("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| path("HOME").map(|home| home.join(".cache")));
    let user = rustix::process::geteuid().as_raw();
    let fallback = temporary.join(format!("nanoinfer-{user}"));
    // Theirs may begin with ~ and hold variables, as where a shell has left them alone: in unit files, in compose files.
    let written = |name: &str| variable(name).map(|value| expanded(&value, variable));
    let hugging_face = written("HF_HOME").unwrap_or_else(|| {
        let below = written("XDG_CACHE_HOME").or_else(|| user_cache.clone()).unwrap_or_else(|| fallback.clone());
        below.join("huggingface")
    });
    let in_hugging_face = |name: &str| hugging_face.join(name);
    Caches {
        demo: user_cache.iter().map(|cache| cache.join("nanoinfer")).chain([fallback]).collect(),
        hub: HubAccess {
            cache: written("HF_HUB_CACHE")
                .or_else(|| written("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| in_hugging_face("hub")),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.into()).trim_end_matches('/').into(),
            token: token(variable, &written("HF_TOKEN_PATH").unwrap_or_else(|| in_hugging_face("token"))),
            offline: variable("HF_HUB_OFFLINE").or_else(|| variable("TRANSFORMERS_OFFLINE")).is_some_and(is_truthy),
            patience: patience(variable),
            proxies: Proxies::new(variable),
        },
    }
}

/// Proxies that requests to other machines go through.
pub fn proxies() -> Proxies {
    Proxies::new(&|name| env::var(name).ok())
}

/// From the environment, else from the file that `hf auth login` writes.
fn token(variable: &dyn Fn(&str) -> Option<String>, file: &Path) -> Option<String> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_truthy) {
        return None;
    }
    let clean = |text: String| Some(text.replace(['\r', '\n'], "").trim().to_owned()).filter(|token| !token.is_empty());
    let typed = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).and_then(clean);
    typed.or_else(|| match fs::read_to_string(file) {
        Ok(text) => clean(text),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                say(format_args!("warning: there is a token in {} that cannot be read: {error}", file.display()));
            }
            None
        }
    })
}

fn patience(variable: &dyn Fn(&str) -> Option<String>) -> Duration {
    const NAME: &str = "HF_HUB_DOWNLOAD_TIMEOUT";
    let Some(value) = variable(NAME) else { return HubAccess::PATIENCE };
    // Python takes 0 for the default, too.
    match value.trim().parse() {
        Ok(0) => HubAccess::PATIENCE,
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let seconds = HubAccess::PATIENCE.as_secs();
            say(format_args!("warning: {NAME} is {value:?}, which is no number of seconds; it counts as {seconds}"));
            HubAccess::PATIENCE
        }
    }
}

fn is_truthy(value: String) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
}

/// A path with `~`, `~user`, `$NAME` and `${NAME}` in it; what is not known stays as it is, as in Python.
fn expanded(value: &str, variable: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let (user, below) = value.split_at(value.find('/').unwrap_or(value.len()));
    let home = match user.strip_prefix('~') {
        Some("") => variable("HOME").or_else(|| home_of(None)),
        Some(name) => home_of(Some(name)),
        None => None,
    };
    let value = home.map_or(value.to_owned(), |home| format!("{}{below}", home.trim_end_matches('/')));
    let (mut path, mut rest) = (String::new(), value.as_str());
    while let Some((before, after)) = rest.split_once('$') {
        let end = after.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(after.len());
        let (name, behind) =
            after.strip_prefix('{').and_then(|braced| braced.split_once('}')).unwrap_or(after.split_at(end));
        path += before;
        match variable(name) {
            Some(value) => path += &value,
            None => path += &rest[before.len()..rest.len() - behind.len()],
        }
        rest = behind;
    }
    PathBuf::from(path + rest)
}

/// The home of a user, else ours.
fn home_of(user: Option<&str>) -> Option<String> {
    let ours = rustix::process::geteuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let mut users = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() > 5);
    users.find(|fields| user.map_or(fields[2] == ours, |user| fields[0] == user)).map(|fields| fields[5].to_owned())
}

/// The variable that a value came from which the parser refuses, if it was not typed: `flag` is as `--port <PORT>`.
pub(super) fn source_of(flag: &str, typed: &[OsString]) -> Option<String> {
    let flag = flag.split(' ').next()?;
    let command = CommandLine::command();
    let argument = command.get_arguments().find(|argument| Some(flag) == long(argument).as_deref())?;
    let variable = argument.get_env()?.to_str()?;
    let is_typed = typed.iter().any(|word| word.to_string_lossy().split('=').next() == Some(flag));
    (!is_typed && env::var_os(variable).is_some()).then(|| variable.to_owned())
}

fn long(argument: &clap::Arg) -> Option<String> {
    argument.get_long().map(|name| format!("--{name}"))
}

/// What to say of variables that look like options and are none: a slip in a name would otherwise go unnoticed.
pub(super) fn slips(variables: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    let command = CommandLine::command();
    let known: Vec<&str> = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str()).collect();
    let ours = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX));
    let (mut links, others): (Vec<_>, Vec<_>) = ours.partition(|(name, value)| has_form_of_service_link(name, value));
    let say = |name: &String| match closest(name, known.iter().copied()) {
        Some(near) => format!("{name} in the environment is no option; did you mean {near}?"),
        None => format!("{name} in the environment is no option"),
    };
    let names = others.iter().map(|(name, _)| name).filter(|name| !known.contains(&name.as_str()));
    let mut said: Vec<String> = names.map(say).collect();
    if !links.is_empty() {
        links.sort();
        let names: Vec<&str> = links.iter().map(|(name, _)| name.as_str()).collect();
        said.push(format!(
            "left out, as the addresses that Kubernetes gives to pods beside a service of that name: {}; hint: enableServiceLinks: false in the pod's spec",
            names.join(", ")
        ));
    }
    said
}

/// All variables that are text.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Whether a variable is set by Kubernetes, or by Docker's links, to tell where a service is.
pub(super) fn is_service_link(name: &OsStr) -> bool {
    let value = env::var_os(name);
    value.is_some_and(|value| {
        name.to_str().zip(value.to_str()).is_some_and(|(name, value)| has_form_of_service_link(name, value))
    })
}

/// By name and value: `X_PORT=tcp://10.96.0.7:8000`, `X_PORT_8000_TCP` with `_ADDR`, `_PORT` and `_PROTO`,
/// `X_SERVICE_HOST`, `X_SERVICE_PORT` and that with the name of a port.
fn has_form_of_service_link(name: &str, value: &str) -> bool {
    let is_number = |text: &str| text.parse::<u16>().is_ok();
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    let is_protocol = |text: &str| matches!(text, "tcp" | "udp" | "sctp");
    let is_url = || {
        value.split_once("://").is_some_and(|(protocol, at)| is_protocol(protocol) && at.parse::<SocketAddr>().is_ok())
    };
    if name.ends_with("_PORT") && is_url() {
        return true;
    }
    if let Some((_, rest)) = name.rsplit_once("_SERVICE_") {
        return match rest {
            "HOST" => is_address(value),
            port => (port == "PORT" || port.starts_with("PORT_")) && is_number(value),
        };
    }
    // From the end, as a service may be called anything: [detail,] protocol, port.
    let mut words = name.rsplit('_');
    let mut last = words.next().unwrap_or_default();
    let detail = matches!(last, "ADDR" | "PORT" | "PROTO").then_some(last);
    if detail.is_some() {
        last = words.next().unwrap_or_default();
    }
    let is_port = is_protocol(&last.to_ascii_lowercase())
        && words.next().is_some_and(is_number)
        && words.next().is_some_and(|word| word == "PORT");
    is_port
        && match detail {
            None => is_url(),
            Some("ADDR") => is_address(value),
            Some("PORT") => is_number(value),
            Some(_) => is_protocol(value),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Caches {
        let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        caches_of(&lookup, Path::new("/tmp"))
    }

    #[test]
    fn the_variables_of_hugging_face_are_followed() {
        let caches = with(&[("HOME", "/home/a")]);
        assert_eq!(caches.hub.cache, Path::new("/home/a/.cache/huggingface/hub"));
        assert_eq!(caches.demo[0], Path::new("/home/a/.cache/nanoinfer"));
        assert_eq!((caches.hub.endpoint.as_str(), caches.hub.offline), (PUBLIC_HUB, false));

        let caches = with(&[
            ("HF_HOME", "/models"),
            ("HF_ENDPOINT", "https://mirror.example/"),
            ("HF_TOKEN", " t\n"),
            ("HF_HUB_OFFLINE", "ON"),
        ]);
        assert_eq!(caches.hub.cache, Path::new("/models/hub"));
        assert_eq!(caches.hub.endpoint, "https://mirror.example");
        assert_eq!((caches.hub.token.as_deref(), caches.hub.offline), (Some("t"), true));
        assert!(!format!("{:?}", caches.hub).contains("\"t\""), "a token is not shown");
    }

    #[test]
    fn paths_are_expanded_as_python_does() {
        let of = |value: &str| with(&[("HOME", "/home/a"), ("DISK", "/disk"), ("HF_HOME", value)]).hub.cache;
        for (value, expected) in [
            ("~/x", "/home/a/x/hub"),
            ("~", "/home/a/hub"),
            ("$HOME/x", "/home/a/x/hub"),
            ("${DISK}/x/$DISK", "/disk/x//disk/hub"),
            ("/a/$NOT_SET/${NOR_THIS}x", "/a/$NOT_SET/${NOR_THIS}x/hub"),
            ("/a/~/$", "/a/~/$/hub"),
            ("~nobody-of-this-name/x", "~nobody-of-this-name/x/hub"),
            ("${open", "${open/hub"),
        ] {
            assert_eq!(of(value), Path::new(expected), "{value}");
        }
        assert_eq!(of("~root/x"), Path::new(&home_of(Some("root")).unwrap()).join("x/hub"));
        let without_home = with(&[("HF_HOME", "~/x")]).hub.cache;
        assert!(without_home.is_absolute() && without_home.ends_with("x/hub"), "{without_home:?}");
    }

    #[test]
    fn older_names_count_where_newer_ones_are_not_set() {
        let home = ("HOME", "/home/a");
        let cache = |variables: &[(&str, &str)]| with(&[&[home], variables].concat()).hub.cache;
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "~/old")]), Path::new("/home/a/old"));
        assert_eq!(
            cache(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "$HOME/new")]),
            Path::new("/home/a/new")
        );
        assert_eq!(cache(&[("XDG_CACHE_HOME", "~/c")]), Path::new("/home/a/c/huggingface/hub"));

        let offline = |variables: &[(&str, &str)]| with(variables).hub.offline;
        assert!(offline(&[("TRANSFORMERS_OFFLINE", "1")]) && offline(&[("HF_HUB_OFFLINE", "yes")]));
        assert!(!offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]), "the newer one decides");

        let token = |variables: &[(&str, &str)]| with(&[&[home], variables].concat()).hub.token;
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old")]).as_deref(), Some("old"));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old"), ("HF_TOKEN", " hf_a\r\nb\n")]).as_deref(), Some("hf_ab"));
        assert_eq!(token(&[("HF_TOKEN", "t"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "TRUE")]), None);
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("token"), "of the file\n").unwrap();
        let path = root.path().to_str().unwrap();
        assert_eq!(token(&[("HF_HOME", path)]).as_deref(), Some("of the file"));
        assert_eq!(token(&[("WHERE", path), ("HF_TOKEN_PATH", "$WHERE/token")]).as_deref(), Some("of the file"));

        let patience = |value: &str| with(&[("HF_HUB_DOWNLOAD_TIMEOUT", value)]).hub.patience.as_secs();
        assert_eq!([patience("5"), patience("0"), patience("soon")], [5, 30, 30]);
    }

    #[test]
    fn slips_in_names_are_told() {
        let names = ["NANOINFER_NPROCS", "NANOINFER_PORT", "NANOINFER_FLAVOUR", "HOME"];
        let said = slips(names.map(|name| (name.to_owned(), "2".to_owned())));
        let [near, far] = &said[..] else { panic!("{said:?}") };
        assert!(near.contains("NANOINFER_NPROCS") && near.ends_with("did you mean NANOINFER_NPROC?"), "{near}");
        assert!(far.contains("NANOINFER_FLAVOUR"), "{far}");
    }

    #[test]
    fn addresses_of_services_are_told_from_options_and_slips() {
        let links = [
            ("NANOINFER_PORT", "tcp://10.96.0.7:8000"),
            ("NANOINFER_PORT", "udp://[fd00::7]:8000"),
            ("NANOINFER_PORT_8000_TCP", "tcp://10.96.0.7:8000"),
            ("NANOINFER_PORT_8000_TCP_ADDR", "10.96.0.7"),
            ("NANOINFER_PORT_8000_TCP_PORT", "8000"),
            ("NANOINFER_PORT_8000_TCP_PROTO", "tcp"),
            ("NANOINFER_SERVICE_HOST", "fd00::7"),
            ("NANOINFER_SERVICE_PORT", "8000"),
            ("NANOINFER_SERVICE_PORT_HTTP", "8000"),
            ("NANOINFER_HOST_PORT", "tcp://10.96.0.8:80"),
            ("NANOINFER_HOST_SERVICE_HOST", "10.96.0.8"),
            ("NANOINFER_MODEL_2_PORT_80_SCTP_ADDR", "10.96.0.8"),
        ];
        for (name, value) in links {
            assert!(has_form_of_service_link(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("NANOINFER_PORT", "80x0"),
            ("NANOINFER_PORT", "8000"),
            ("NANOINFER_PORT", "tcp://10.96.0.7"),
            ("NANOINFER_PORT", "http://10.96.0.7:8000"),
            ("NANOINFER_HOST", "10.96.0.7"),
            ("NANOINFER_SERVICE_HOST", "nowhere"),
            ("NANOINFER_SERVICE_PORT", "x"),
            ("NANOINFER_SERVICE_NAME", "8000"),
            ("NANOINFER_PORT_TCP_ADDR", "10.96.0.7"),
            ("NANOINFER_PORT_8000_TCP_PROTO", "ip"),
            ("NANOINFER_MODEL", "tcp://10.96.0.7:8000"),
        ] {
            assert!(!has_form_of_service_link(name, value), "{name}={value}");
        }
        let said = slips(links.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let [one] = &said[..] else { panic!("{said:?}") };
        assert!(one.contains("NANOINFER_PORT_8000_TCP_ADDR, ") && one.contains("enableServiceLinks"), "{one}");
        assert!(!one.contains("did you mean"));
    }

    #[test]
    fn without_a_home_the_temporary_folder_serves() {
        let caches = with(&[]);
        assert_eq!(caches.demo.len(), 1);
        assert!(caches.demo[0].starts_with("/tmp") && caches.hub.cache.starts_with("/tmp"));
    }
}
