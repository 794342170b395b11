//! Pages of other sites in a browser that can reach this server: kept out where no key keeps them out.
//!
//! Any page may send requests to any address, without asking first where they look like a form's, and a name that its owner
//! points here (DNS rebinding) makes a page of this server's own site. Browsers tell of both: in `Origin` and
//! `Sec-Fetch-Site`, and in `Host`. Programs send none of the first two, and are not concerned.
//! Invariant: probes are never refused. Reference: <https://www.w3.org/TR/fetch-metadata/>.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::access;
use crate::http::{Failure, HttpOptions};

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Who is let in.
#[derive(Debug)]
pub(crate) struct Neighbours {
    /// Sites whose pages may ask; `*` for all.
    origins: Vec<HeaderValue>,
    /// Names of this server besides those of loopback, in lower case; `*` for all. None where any name will do: who is bound
    /// to other addresses may have any service's name.
    hosts: Option<Vec<String>>,
}

impl Neighbours {
    /// Those of a server that is bound to `address`.
    pub(crate) fn new(options: &HttpOptions, address: IpAddr) -> Self {
        let hosts = || options.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { origins: options.cors_origins.clone(), hosts: address.to_canonical().is_loopback().then(hosts) }
    }

    /// Why a request is not let in.
    fn obstacle(&self, request: &Request) -> Option<Failure> {
        let headers = request.headers();
        let said = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let host = said(header::HOST).unwrap_or_default();
        let named = [host, request.uri().authority().map_or("", |authority| authority.as_str())];
        if let Some(name) = named.into_iter().find(|name| !self.is_ours(name)) {
            return Some(Failure::foreign_host(name_of(name)));
        }
        let looks_at_a_page = matches!(*request.method(), Method::GET | Method::HEAD) && said(MODE) == Some("navigate");
        let (site, origin) = (said(SITE), headers.get(header::ORIGIN));
        let is_let_in = self.origins.iter().any(|known| known == "*" || origin == Some(known));
        if looks_at_a_page || site == Some("same-origin") || is_let_in {
            return None;
        }
        match origin {
            // The browser's own word, where it gives one, is enough: a proxy may have changed the host.
            Some(origin) if !is_of(origin, host) => Some(Failure::foreign_origin(origin.to_str().ok())),
            _ if site == Some("cross-site") => Some(Failure::foreign_origin(None)),
            _ => None,
        }
    }

    /// Whether a host, with or without its port, is a name of this server.
    fn is_ours(&self, host: &str) -> bool {
        let Some(known) = &self.hosts else { return true };
        let name = name_of(host).to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let address: Option<IpAddr> = name.parse().ok();
        // Programs without a name for it are no browsers.
        name.is_empty()
            || name == "localhost"
            || name.ends_with(".localhost")
            || address.is_some_and(|address| address.to_canonical().is_loopback())
            || known.iter().any(|known| known == "*" || known == name)
    }
}

/// Middleware that lets in who may ask.
pub(crate) async fn check(State(neighbours): State<Arc<Neighbours>>, request: Request, next: Next) -> Response {
    if !access::PROBES.contains(&request.uri().path())
        && let Some(failure) = neighbours.obstacle(&request)
    {
        return failure.into_response();
    }
    next.run(request).await
}

/// A host without its port, and without the brackets of an address.
fn name_of(host: &str) -> &str {
    let (host, end) = host.strip_prefix('[').map_or((host, ':'), |address| (address, ']'));
    host.split(end).next().unwrap_or(host)
}

/// Whether pages of an origin come from this host.
fn is_of(origin: &HeaderValue, host: &str) -> bool {
    let Some((scheme, authority)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else {
        return false;
    };
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let plain = |authority: &str| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
    plain(authority) == plain(host)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn neighbours(address: &str, origins: &[&'static str], hosts: &[&str]) -> Neighbours {
        let options = HttpOptions {
            cors_origins: origins.iter().copied().map(HeaderValue::from_static).collect(),
            allowed_hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            ..HttpOptions::default()
        };
        Neighbours::new(&options, address.parse().unwrap())
    }

    fn lets_in(neighbours: &Neighbours, method: Method, headers: &[(HeaderName, &str)]) -> bool {
        let mut request = Request::builder().method(method).uri("/api/chat");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        neighbours.obstacle(&request.body(Body::empty()).unwrap()).is_none()
    }

    #[test]
    fn on_loopback_a_host_must_be_a_name_of_it() {
        let ours = neighbours("127.0.0.1", &[], &["Chat.example"]);
        for (host, known) in [
            ("localhost", true),
            ("LOCALHOST:8000", true),
            ("localhost.:8000", true),
            ("page.localhost:8000", true),
            ("127.0.0.1:8000", true),
            ("127.1.2.3", true),
            ("[::1]:8000", true),
            ("[::ffff:127.0.0.1]", true),
            ("chat.example:8000", true),
            ("", true),
            ("evil.example", false),
            ("evil.example:8000", false),
            ("localhost.evil.example", false),
            ("notlocalhost", false),
            ("192.168.1.5:8000", false),
            ("127.0.0.1.evil.example", false),
            ("[::2]:8000", false),
        ] {
            let headers = [(header::HOST, host)];
            assert_eq!(lets_in(&ours, Method::POST, &headers), known, "{host}");
            assert!(lets_in(&neighbours("0.0.0.0", &[], &[]), Method::POST, &headers), "{host}");
            assert!(lets_in(&neighbours("::1", &[], &["*"]), Method::POST, &headers), "{host}");
        }
        let absolute = Request::builder().uri("http://evil.example/api/chat").header("host", "localhost");
        assert!(ours.obstacle(&absolute.body(Body::empty()).unwrap()).is_some());
    }

    #[test]
    fn pages_of_other_sites_are_kept_out_unless_they_are_named() {
        let own = ("127.0.0.1:8000", "http://127.0.0.1:8000");
        let host = |host| (header::HOST, host);
        let (site, mode, origin) = (|it| (SITE, it), |it| (MODE, it), |it| (header::ORIGIN, it));
        let named = "https://chat.example";
        for address in ["127.0.0.1", "0.0.0.0"] {
            let ours = neighbours(address, &["https://chat.example"], &[]);
            for (headers, expected) in [
                // Programs: curl, and Node's fetch.
                (vec![host(own.0)], true),
                (vec![host(own.0), mode("cors")], true),
                (vec![], true),
                // The page itself, an address bar, a link on another site.
                (vec![host(own.0), origin(own.1)], true),
                (vec![host(own.0), origin(own.1), site("same-origin"), mode("cors")], true),
                (vec![host("localhost"), origin("http://LOCALHOST:80")], true),
                (vec![host(own.0), site("none"), mode("navigate")], true),
                // The page behind a proxy that changes the host.
                (vec![host(own.0), origin("https://behind.example"), site("same-origin")], true),
                // Others.
                (vec![host(own.0), origin("https://evil.example")], false),
                (vec![host(own.0), origin("https://evil.example"), site("cross-site"), mode("no-cors")], false),
                (vec![host(own.0), origin("http://127.0.0.1:3000"), site("same-site"), mode("cors")], false),
                (vec![host(own.0), origin("https://127.0.0.1:8000")], true),
                (vec![host(own.0), origin("null")], false),
                (vec![host(own.0), origin("null"), site("cross-site")], false),
                (vec![host(own.0), site("cross-site"), mode("no-cors")], false),
                (vec![host(own.0), site("same-site"), mode("no-cors")], true),
                (vec![host(own.0), origin("chrome-extension://abc")], false),
                (vec![host(own.0), origin(named)], true),
                (vec![host(own.0), origin(named), site("cross-site"), mode("cors")], true),
            ] {
                assert_eq!(lets_in(&ours, Method::POST, &headers), expected, "{headers:?}");
                let any = neighbours(address, &["*"], &[]);
                assert!(lets_in(&any, Method::POST, &headers), "{headers:?}");
            }
            let link = [host(own.0), site("cross-site"), mode("navigate")];
            assert!(lets_in(&ours, Method::GET, &link) && !lets_in(&ours, Method::POST, &link), "a form is no link");
        }
    }
}
