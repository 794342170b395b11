//! Which proxy a request goes through: what `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` say, as curl reads them.
//!
//! Names in small letters win over those in capitals. Entries of `no_proxy` are hosts with all below them, addresses, networks
//! (`10.0.0.0/8`), each with a port if one is meant, or `*`. Does not read the environment (`environment` does), and asks
//! nobody.
//!
//! Invariant: what is on this machine is asked directly, whatever the variables say, also where a redirect leads to it.

use std::net::{IpAddr, ToSocketAddrs};

use ureq::{Proxy, http::Uri};

/// Names that are this machine's everywhere; `localhost` with all below it besides.
const OWN_NAMES: [&str; 3] = ["localhost.localdomain", "ip6-localhost", "ip6-loopback"];
/// Hosts that a redirect may name, as the HTTP library compares them.
const OWN_HOSTS: [&str; 4] = ["localhost", "*.localhost", "127.*", "[::1]"];

/// What the environment says of proxies.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Setting>,
    https: Option<Setting>,
    all: Option<Setting>,
    except: String,
}

/// A variable that is set; its value may hold a password.
#[derive(Clone)]
struct Setting {
    variable: String,
    value: String,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.variable)
    }
}

/// A proxy that cannot be one. Its address is not told, as it may hold a password.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} in the environment names no proxy\n  hint: http://HOST:PORT or socks5://HOST:PORT; NO_PROXY lists hosts that are asked without one"
)]
pub struct ProxyError(String);

impl Proxies {
    /// `variable` looks one up; an empty one counts as none.
    pub fn new(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let setting = |name: &str| {
            [name.to_owned(), name.to_ascii_uppercase()].into_iter().find_map(|variable_name| {
                let value = variable(&variable_name).filter(|value| !value.trim().is_empty())?;
                Some(Setting { variable: variable_name, value: value.trim().to_owned() })
            })
        };
        Self {
            http: setting("http_proxy"),
            https: setting("https_proxy"),
            all: setting("all_proxy"),
            except: setting("no_proxy").map_or_else(String::new, |setting| setting.value),
        }
    }

    /// The proxy for what is at `url`, if it has one.
    ///
    /// # Errors
    /// When the variable that counts names none.
    pub fn of(&self, url: &str) -> Result<Option<Proxy>, ProxyError> {
        // What is no address fails when it is asked, in better words.
        let Ok(uri) = url.parse::<Uri>() else { return Ok(None) };
        let Some(host) = uri.host() else { return Ok(None) };
        let is_https = uri.scheme_str() == Some("https");
        let setting = if is_https { &self.https } else { &self.http };
        let Some(Setting { variable, value }) = setting.as_ref().or(self.all.as_ref()) else { return Ok(None) };
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        if is_this_machine(host) || self.is_excepted(host, port) {
            return Ok(None);
        }
        let wrong = |_| ProxyError(variable.clone());
        let named = Proxy::new(value).map_err(wrong)?;
        let mut proxy = Proxy::builder(named.protocol()).host(named.host()).port(named.port());
        if let Some(name) = named.username() {
            proxy = proxy.username(name);
        }
        if let Some(password) = named.password() {
            proxy = proxy.password(password);
        }
        OWN_HOSTS.into_iter().fold(proxy, |proxy, host| proxy.no_proxy(host)).build().map(Some).map_err(wrong)
    }

    fn is_excepted(&self, host: &str, port: u16) -> bool {
        let entries = self.except.split([',', ' ', '\t']).filter(|entry| !entry.is_empty());
        entries.map(str::to_ascii_lowercase).any(|entry| {
            let (name, only) = with_port(&entry);
            only.is_none_or(|only| only == port) && (name == "*" || covers(name, host))
        })
    }
}

/// An entry's host, and its port where it has one. Colons of a bare IPv6 address are its own.
fn with_port(entry: &str) -> (&str, Option<u16>) {
    let parted = entry.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    parted.and_then(|(host, port)| Some((host, Some(port.parse().ok()?)))).unwrap_or((entry, None))
}

/// Whether an entry means `host`.
fn covers(entry: &str, host: &str) -> bool {
    let (network, bits) = match entry.split_once('/') {
        Some((network, bits)) => (network, bits.parse::<u32>().ok()),
        None => (entry, Some(u32::MAX)),
    };
    if let (Some(network), Some(bits), Some(address)) = (address(network), bits, address(host)) {
        return prefix(network, bits) == prefix(address, bits);
    }
    let name = entry.trim_start_matches('*').trim_start_matches('.').trim_end_matches('.');
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let above = host.strip_suffix(name);
    !name.is_empty() && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

/// The first bits of an address, all of them where it has no more, with how many an address of its kind has.
fn prefix(address: IpAddr, bits: u32) -> (u32, u128) {
    let (all, value) = match address {
        IpAddr::V4(address) => (32, u128::from(address.to_bits())),
        IpAddr::V6(address) => (128, address.to_bits()),
    };
    (all, value.checked_shr(all - bits.min(all)).unwrap_or(0))
}

fn is_this_machine(host: &str) -> bool {
    if let Some(address) = address(host) {
        // What is unspecified is reached at home.
        return address.is_loopback() || address.is_unspecified();
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost") || OWN_NAMES.contains(&host.as_str())
}

/// An address in any form that connecting to it understands, as 127.1; no name server is asked.
fn address(host: &str) -> Option<IpAddr> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    let is_number = |part: &str| match part.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()),
    };
    let parsed = bare.parse().ok();
    let old = || bare.split('.').all(is_number).then(|| (bare, 0).to_socket_addrs().ok()?.next()).flatten();
    parsed.or_else(|| old().map(|address| address.ip())).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::new(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    fn host_of(variables: &[(&str, &str)], url: &str) -> Option<String> {
        proxies(variables).of(url).unwrap().map(|proxy| format!("{}:{}", proxy.host(), proxy.port()))
    }

    #[test]
    fn the_scheme_of_the_address_chooses_and_small_letters_win() {
        let all = [("http_proxy", "http://a:1"), ("HTTPS_PROXY", "b:2"), ("ALL_PROXY", "socks5://c:3")];
        assert_eq!(host_of(&all, "http://x.example").as_deref(), Some("a:1"));
        assert_eq!(host_of(&all, "https://x.example/v1").as_deref(), Some("b:2"));
        assert_eq!(host_of(&all[2..], "https://x.example").as_deref(), Some("c:3"));
        assert_eq!(host_of(&all[1..2], "http://x.example"), None, "a proxy for https is none for http");
        let both = [("HTTP_PROXY", "http://capitals"), ("http_proxy", "http://small")];
        assert_eq!(host_of(&both, "http://x.example").as_deref(), Some("small:80"));
        assert_eq!(host_of(&[("http_proxy", " "), ("HTTP_PROXY", "h:1")], "http://x").as_deref(), Some("h:1"));
        let with_password = proxies(&[("http_proxy", "http://me:p%40ss@h:1")]);
        assert_eq!(with_password.of("http://x").unwrap().unwrap().password(), Some("p@ss"));
        assert!(!format!("{with_password:?}").contains("p%40ss"));
        let error = proxies(&[("https_proxy", "ftp://me:secret@h")]).of("https://x").unwrap_err().to_string();
        assert!(error.contains("https_proxy") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn what_is_on_this_machine_is_never_asked_through_a_proxy() {
        // Nor is its address looked at.
        let variables = [("http_proxy", "http://p:1"), ("https_proxy", "no proxy at all")];
        for host in [
            "127.0.0.1",
            "127.1",
            "127.8.9.10:8000",
            "0x7f.1",
            "2130706433",
            "localhost",
            "LocalHost:8000",
            "localhost.",
            "a.localhost",
            "[::1]",
            "[::1]:8000",
            "[::ffff:127.0.0.1]",
            "0.0.0.0:8000",
            "[::]:8000",
            "ip6-localhost",
        ] {
            for scheme in ["http", "https"] {
                assert_eq!(host_of(&variables, &format!("{scheme}://{host}/api")), None, "{scheme}://{host}");
            }
        }
        for host in ["128.0.0.1", "127.example", "notlocalhost", "localhost.example", "[::2]", "1.example"] {
            assert!(host_of(&variables, &format!("http://{host}")).is_some(), "{host}");
        }
        // Also where a redirect names it.
        let proxy = proxies(&variables).of("http://x.example").unwrap().unwrap();
        for host in ["localhost:1", "127.0.0.1", "[::1]:8000"] {
            assert!(proxy.is_no_proxy(&format!("http://{host}/").parse().unwrap()), "{host}");
        }
    }

    #[test]
    fn no_proxy_is_read_as_curl_reads_it() {
        for (entries, direct, through) in [
            ("example.com", &["example.com", "a.b.EXAMPLE.com:81", "example.com."][..], &["badexample.com", "com"][..]),
            (".example.com, other", &["example.com", "a.example.com", "other:8000"], &["another"]),
            ("*.example.com", &["a.example.com"], &["example.org"]),
            ("a:8000 [2001:db8::1]:80", &["a:8000", "[2001:db8::1]"], &["a", "[2001:db8::1]:8000"]),
            ("10.0.0.0/8,2001:db8::/32", &["10.255.0.1", "[2001:db8:5::1]:9"], &["11.0.0.1", "[2001:db9::1]"]),
            ("192.168.1.7,::2", &["192.168.1.7:81", "[::2]"], &["192.168.1.70", "[::3]"]),
            ("0.0.0.0/0", &["8.8.8.8"], &["[2001:db8::1]", "a"]),
            ("*", &["anything", "[2001:db8::1]:5"], &[]),
            (",. ,/8,a:x", &[], &["a", "10.0.0.1"]),
        ] {
            let variables = [("http_proxy", "http://p:1"), ("NO_PROXY", entries)];
            for host in direct {
                assert_eq!(host_of(&variables, &format!("http://{host}/")), None, "{entries}: {host}");
            }
            for host in through {
                assert!(host_of(&variables, &format!("http://{host}/")).is_some(), "{entries}: {host}");
            }
        }
    }
}
