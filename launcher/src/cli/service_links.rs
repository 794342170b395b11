//! Variables that Kubernetes, and Docker's links, set to tell where services are: one of ours may have the name of an option.
//!
//! Knows their forms only.

use std::{
    env,
    ffi::OsStr,
    net::{IpAddr, SocketAddr},
};

/// Whether a variable is set by Kubernetes, or by Docker's links, to tell where a service is.
pub(super) fn is_one(name: &OsStr) -> bool {
    let value = env::var_os(name);
    value.is_some_and(|value| name.to_str().zip(value.to_str()).is_some_and(|(name, value)| has_form(name, value)))
}

/// By name and value: `X_PORT=tcp://10.96.0.7:8000`, `X_PORT_8000_TCP` with `_ADDR`, `_PORT` and `_PROTO`,
/// `X_SERVICE_HOST`, `X_SERVICE_PORT` and that with the name of a port.
pub(super) fn has_form(name: &str, value: &str) -> bool {
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
    // At the end, as a service may be called anything.
    let words: Vec<&str> = name.split('_').collect();
    let (port, protocol, fits) = match words[..] {
        [.., "PORT", port, protocol, "ADDR"] => (port, protocol, is_address(value)),
        [.., "PORT", port, protocol, "PORT"] => (port, protocol, is_number(value)),
        [.., "PORT", port, protocol, "PROTO"] => (port, protocol, is_protocol(value)),
        [.., "PORT", port, protocol] => (port, protocol, is_url()),
        _ => return false,
    };
    fits && is_number(port) && is_protocol(&protocol.to_ascii_lowercase())
}
