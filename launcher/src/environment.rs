//! Where the environment says that models are: the variables that all Hugging Face tools share, and XDG's.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    model::{Caches, HubAccess},
    proxy::Proxies,
    say,
};

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
    let below = written("XDG_CACHE_HOME").or_else(|| user_cache.clone()).unwrap_or_else(|| fallback.clone());
    let hugging_face = written("HF_HOME").unwrap_or_else(|| below.join("huggingface"));
    let hub_cache = written("HF_HUB_CACHE").or_else(|| written("HUGGINGFACE_HUB_CACHE"));
    Caches {
        demo: user_cache.iter().map(|cache| cache.join("nanoinfer")).chain([fallback]).collect(),
        hub: HubAccess {
            cache: hub_cache.unwrap_or_else(|| hugging_face.join("hub")),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.into()).trim_end_matches('/').into(),
            token: token(variable, &written("HF_TOKEN_PATH").unwrap_or_else(|| hugging_face.join("token"))),
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
    fn without_a_home_the_temporary_folder_serves() {
        let caches = with(&[]);
        assert_eq!(caches.demo.len(), 1);
        assert!(caches.demo[0].starts_with("/tmp") && caches.hub.cache.starts_with("/tmp"));
    }
}
