//! What to say of our own variables in the environment, which the parser reads, where they are wrong.

use std::{env, ffi::OsString};

use clap::{Command, CommandFactory};

use super::{options::CommandLine, service_links};
use crate::closest;

/// The variable with the secret that nodes hold, which is no option: other users see those.
pub(super) const SECRET: &str = "NANOINFER_SECRET";
/// How all variables of ours begin.
const PREFIX: &str = "NANOINFER_";

/// The variable that a value came from which the parser refuses, if it was not typed: `flag` is as `--port <PORT>`.
pub(super) fn source_of(flag: &str, typed: &[OsString]) -> Option<String> {
    let flag = flag.split(' ').next()?;
    let command = CommandLine::command();
    let name = flag.strip_prefix("--");
    let argument = command.get_arguments().find(|argument| name.is_some() && argument.get_long() == name)?;
    let variable = argument.get_env()?.to_str()?;
    let is_typed = typed.iter().any(|word| word.to_string_lossy().split('=').next() == Some(flag));
    (!is_typed && env::var_os(variable).is_some()).then(|| variable.to_owned())
}

/// What to say of variables that look like options and are none: a slip in a name would otherwise go unnoticed.
pub(super) fn slips(variables: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    let command = CommandLine::command();
    let of_nodes = command.get_subcommands().flat_map(Command::get_arguments);
    let arguments = command.get_arguments().chain(of_nodes);
    let known = arguments.filter_map(|argument| argument.get_env()?.to_str()).chain([SECRET]);
    let known: Vec<&str> = known.collect();
    let ours = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX));
    let (mut links, others): (Vec<_>, Vec<_>) = ours.partition(|(name, value)| service_links::has_form(name, value));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_in_names_are_told() {
        let names =
            ["NANOINFER_NPROCS", "NANOINFER_PORT", "NANOINFER_FLAVOUR", "NANOINFER_SECRET", "NANOINFER_NODES", "HOME"];
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
            assert!(service_links::has_form(name, value), "{name}={value}");
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
            assert!(!service_links::has_form(name, value), "{name}={value}");
        }
        let said = slips(links.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let [one] = &said[..] else { panic!("{said:?}") };
        assert!(one.contains("NANOINFER_PORT_8000_TCP_ADDR, ") && one.contains("enableServiceLinks"), "{one}");
        assert!(!one.contains("did you mean"));
    }
}
