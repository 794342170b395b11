//! Pages of other sites, and names that are not ours.

use serde_json::json;
use tokio::sync::mpsc;

use super::Server;
use crate::{
    http::{ApiKey, HeaderValue, HttpOptions},
    testing::{Act, engine, saying, scripted, speak},
};

#[tokio::test]
async fn a_page_of_another_site_generates_nothing_and_is_told_why() {
    let (seen, mut generated) = mpsc::unbounded_channel();
    let handle = scripted(8, move |request| {
        let _ = seen.send(());
        Act::Events(speak(request, " ok"))
    });
    let server = Server::start(engine(handle)).await;
    let body = json!({"prompt": "x"}).to_string();
    let evil = "Content-Type: text/plain\r\nOrigin: http://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
    for path in ["/api/chat", "/v1/completions", "/tokenize"] {
        let reply = server.send("POST", path, evil, &body).await;
        assert_eq!(reply.status, 403, "{path}: {}", reply.body);
        assert!(reply.body.contains("hint: --cors-origin http://evil.example"), "{}", reply.body);
    }
    assert!(server.send("GET", "/api/cluster", evil, "").await.json()["error"].is_string(), "Ollama's form");
    assert!(generated.try_recv().is_err());
    for path in ["/livez", "/metrics"] {
        assert_eq!(server.send("GET", path, evil, "").await.status, 200, "{path}");
    }
    let link = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n";
    assert_eq!(server.send("GET", "/", link, "").await.status, 200);
    assert_eq!(server.send("POST", "/api/chat", "Sec-Fetch-Mode: cors\r\n", &body).await.status, 200, "Node's fetch");
}

#[tokio::test]
async fn a_name_that_somebody_points_here_is_no_name_of_this_server() {
    let server = Server::start(saying(" ok")).await;
    let get = async |server: &Server, host: &str, path: &str| {
        server.exchange(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    };
    for path in ["/", "/api/cluster", "/v1/models"] {
        let reply = get(&server, "evil.example:8000", path).await;
        assert_eq!(reply.status, 403, "{path}");
        assert!(reply.body.contains("hint: --allowed-host evil.example makes it one"), "{}", reply.body);
        assert_eq!(get(&server, "localhost:8000", path).await.status, 200, "{path}");
        assert_eq!(get(&server, &server.address.to_string(), path).await.status, 200, "{path}");
    }
    assert_eq!(get(&server, "evil.example", "/readyz").await.status, 200);
    let options = HttpOptions { allowed_hosts: vec!["chat.example".into()], ..HttpOptions::default() };
    let named = Server::with(saying(" ok"), options).await;
    assert_eq!(get(&named, "Chat.Example:443", "/v1/models").await.status, 200);
}

#[tokio::test]
async fn named_sites_and_whoever_shows_the_key_are_let_in() {
    let body = json!({"prompt": "x"}).to_string();
    let cors_origins = vec![HeaderValue::from_static("https://chat.example")];
    let server = Server::with(saying(" ok"), HttpOptions { cors_origins, ..HttpOptions::default() }).await;
    let origin = "Origin: https://chat.example\r\nSec-Fetch-Site: cross-site\r\n";
    let reply = server.send("POST", "/api/chat", origin, &body).await;
    assert!(reply.status == 200 && reply.head.contains("access-control-allow-origin: https://chat.example"));
    let preflight = format!("{origin}Access-Control-Request-Method: POST\r\n");
    assert_eq!(server.send("OPTIONS", "/api/chat", &preflight, "").await.status, 200);
    assert_eq!(server.send("POST", "/api/chat", "Origin: https://evil.example\r\n", &body).await.status, 403);
    let options = HttpOptions { api_key: Some(ApiKey::new("s3cret")), ..HttpOptions::default() };
    let server = Server::with(saying(" ok"), options).await;
    let foreign = "Host: evil.example\r\nOrigin: https://evil.example\r\nAuthorization: Bearer s3cret\r\n";
    let request = format!("POST /api/chat HTTP/1.0\r\n{foreign}Content-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(server.exchange(&request).await.status, 200);
}
