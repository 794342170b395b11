//! What stands around the chats: Ollama's library, keys, other sites' pages, metrics, documents.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use super::Server;
use crate::{
    config::ModelCard,
    http::{ApiKey, HeaderValue, HttpOptions, document, page},
    testing::{Act, demo_card, demo_text, engine, saying, scripted, speak},
    text::TextEngine,
};

#[tokio::test]
async fn a_given_name_is_all_that_clients_see() {
    let card = ModelCard { name: "/srv/secret/nano-chat".into(), served_name: Some("public".into()), ..demo_card() };
    let handle = scripted(8, |request| Act::Events(speak(request, " ok")));
    let server = Server::start(TextEngine::new(handle, demo_text(), std::sync::Arc::new(card))).await;
    let messages = json!([{"role": "user", "content": "x"}]);
    let mut replies = vec![
        server.post("/v1/completions", json!({"prompt": "x"})).await,
        server.post("/v1/chat/completions", json!({"model": "public", "messages": messages, "stream": true})).await,
        server.post("/api/chat", json!({"model": "nano-chat", "messages": messages})).await,
        server.post("/api/generate", json!({})).await,
        server.post("/v1/completions", json!({"model": "gpt-4", "prompt": "x"})).await,
        server.post("/api/show", json!({"model": "public"})).await,
        server.post("/api/embed", json!({"model": "public"})).await,
    ];
    for path in ["/v1/models", "/v1/models/nano-chat", "/api/tags", "/api/ps", "/api/model_info", "/api/cluster"] {
        replies.push(server.get(path).await);
    }
    for reply in replies {
        assert!(reply.body.contains("public") && !reply.body.contains("secret"), "{}", reply.body);
    }
    assert_eq!(server.get("/v1/models").await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn slashes_at_the_end_or_doubled_find_their_route_and_no_way_round_the_key() {
    let server = Server::start(saying("x")).await;
    for path in ["/v1/models/", "//v1/models", "/v1//models", "/v1///models//?a=//b", "/v1/models//someone//nano-chat/"]
    {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for path in ["/v1/completions/", "/v1//completions", "//api/chat"] {
        assert_eq!(server.post(path, json!({"prompt": "x"})).await.status, 200, "{path}");
    }
    let nothing = server.get("//api//nothing/").await;
    assert!(nothing.status == 404 && nothing.json()["error"].is_string(), "Ollama's form: {}", nothing.body);
    assert_eq!(server.get("//").await.status, 200);
    let options = HttpOptions { api_key: Some(ApiKey::new("s3cret")), ..HttpOptions::default() };
    let server = Server::with(saying("x"), options).await;
    for path in ["//v1/models", "/v1/models/", "//", "//assets//../v1/models", "/livez/../v1/models"] {
        let open = path == "//";
        assert_eq!(server.get(path).await.status == 401, !open && !path.contains("assets"), "{path}");
    }
}

#[tokio::test]
async fn a_request_keeps_the_name_that_its_client_gave_it() {
    let server = Server::start(saying("x")).await;
    let id = |head: &str| {
        let mut ids = head.lines().filter_map(|line| line.strip_prefix("x-request-id: "));
        let id = ids.next().unwrap().to_owned();
        assert_eq!(ids.next(), None);
        id
    };
    let send = async |header: &str| id(&server.send("GET", "/livez", header, "").await.head);
    let longest = "a".repeat(128);
    for given in ["trace-7/x_1", longest.as_str()] {
        assert_eq!(send(&format!("X-Request-Id: {given}\r\n")).await, given);
    }
    for given in [String::new(), "two words".into(), "caf\u{e9}".into(), "a".repeat(129)] {
        let made = send(&format!("X-Request-Id: {given}\r\n")).await;
        assert!(made.len() == 32 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{made}");
    }
    assert_ne!(send("").await, send("").await);
    let refused = server.send("POST", "/v1/completions", "X-Request-Id: mine\r\n", "{").await;
    assert_eq!((refused.status, id(&refused.head)), (400, "mine".to_owned()));
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let server = Server::start(saying("x")).await;
    for (version, hosts, status) in [
        ("1.1", "Host: x\r\n", 200),
        ("1.1", "Host:\r\n", 200),
        ("1.1", "", 400),
        ("1.1", "Host: x\r\nHost: x\r\n", 400),
        ("1.0", "", 200),
        ("1.0", "Host: x\r\nHost: y\r\n", 400),
    ] {
        let request = format!("GET /livez HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n");
        let reply = server.exchange(&request).await;
        assert_eq!(reply.status, status, "{request}");
        if status == 400 {
            assert!(reply.json()["error"]["message"].as_str().unwrap().contains("`Host`"), "{}", reply.body);
        }
    }
}

#[tokio::test]
async fn ollama_generates_from_one_prompt() {
    let server = Server::start(saying(" Hello there!")).await;
    let body = json!({"model": "nano-chat", "prompt": "Hi", "system": "Be kind.", "stream": false, "keep_alive": "5m"});
    let reply = server.ask("/api/generate", body).await;
    assert_eq!((&reply["response"], &reply["done_reason"]), (&json!("Hello there!"), &json!("stop")));
    assert!(reply.get("message").is_none() && reply["eval_count"].as_u64() > Some(2));

    let lines = server.post("/api/generate", json!({"model": "nano-chat", "prompt": "Hi", "raw": true})).await.lines();
    let (last, pieces) = lines.split_last().unwrap();
    let text: String = pieces.iter().map(|line| line["response"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, " Hello there!", "raw text keeps its space");
    assert_eq!((&last["done"], &last["response"]), (&json!(true), &json!("")));

    let loaded = server.ask("/api/generate", json!({"model": "nano-chat"})).await;
    assert_eq!((&loaded["done_reason"], &loaded["response"]), (&json!("load"), &json!("")));
    let refused = server.post("/api/generate", json!({"prompt": "Hi", "suffix": "end"})).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
}

#[tokio::test]
async fn ollamas_library_has_one_model_that_nothing_changes() {
    let server = Server::start(saying("x")).await;
    let of = |body: Value| body["models"][0].clone();
    let (tags, ps) = (of(server.get("/api/tags").await.json()), of(server.get("/api/ps").await.json()));
    for entry in [&tags, &ps] {
        assert_eq!((&entry["model"], &entry["size"]), (&json!("someone/nano-chat"), &json!(11_900_000)));
        assert_eq!((&entry["details"]["parameter_size"], &entry["digest"]), (&json!("5.9M"), &json!("00c0ffee")));
    }
    assert!(tags["modified_at"].is_string() && ps["expires_at"].is_string());
    let show = server.ask("/api/show", json!({"model": "nano-chat:latest"})).await;
    assert_eq!(show["model_info"]["gpt2.context_length"], 256);
    assert_eq!(show["capabilities"], json!(["completion"]));
    assert_eq!(server.post("/api/show", json!({"name": "llama3"})).await.status, 404);
    assert_eq!(server.ask("/api/pull", json!({"model": "nano-chat", "stream": false})).await["status"], "success");
    let pulled = server.post("/api/pull", json!({"model": "nano-chat"})).await.lines();
    assert_eq!(pulled.last().unwrap()["status"], "success");
    let embed = server.post("/api/embed", json!({"model": "nano-chat", "input": "x"})).await;
    assert_eq!(embed.status, 400);
    assert!(embed.json()["error"].as_str().unwrap().contains("does not support embeddings"), "{}", embed.body);
    for (method, path) in [("DELETE", "/api/delete"), ("POST", "/api/copy"), ("HEAD", "/api/blobs/sha256:00")] {
        assert_eq!(server.send(method, path, "", "{}").await.status, 400, "{method} {path}");
    }
    let head = server.send("HEAD", "/", "", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_key_opens_every_route_and_pages_need_none() {
    let options = HttpOptions { api_key: Some(ApiKey::new("s3cret")), ..HttpOptions::default() };
    let server = Server::with(saying(" ok"), options).await;
    for path in ["/", "/learn", "/docs", "/assets/chat.js", "/livez", "/readyz", "/health"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for header in
        ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic s3cret\r\n", "Authorization: s3cret\r\n"]
    {
        for path in ["/v1/models", "/metrics", "/openapi.json", "/api/cluster", "/nowhere"] {
            let reply = server.send("GET", path, header, "").await;
            assert_eq!(reply.status, 401, "{path} with {header:?}");
            assert!(reply.head.contains("www-authenticate: bearer"), "{}", reply.head);
        }
    }
    assert_eq!(server.get("/v1/models").await.json()["error"]["code"], "invalid_api_key");
    assert!(server.get("/api/tags").await.json()["error"].is_string(), "Ollama's form");
    for scheme in ["Bearer", "bearer"] {
        let header = format!("Authorization: {scheme} s3cret\r\n");
        assert_eq!(server.send("GET", "/v1/models", &header, "").await.status, 200);
        let body = json!({"prompt": "x"}).to_string();
        assert_eq!(server.send("POST", "/api/chat", &header, &body).await.status, 200);
    }
}

#[tokio::test]
async fn pages_of_named_sites_may_read_answers() {
    let asked = "authorization,content-type,x-stainless-lang";
    let preflight = format!("Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {asked}\r\n");
    let with = |origins: &[&'static str]| {
        let cors_origins = origins.iter().copied().map(HeaderValue::from_static).collect();
        HttpOptions { cors_origins, api_key: Some(ApiKey::new("k")), ..HttpOptions::default() }
    };
    for (origins, asking, allowed) in [
        (&["https://chat.example"][..], "https://chat.example", true),
        (&["https://chat.example"], "https://evil.example", false),
        (&["*"], "https://any.example", true),
        (&[], "https://chat.example", false),
    ] {
        let server = Server::with(saying("x"), with(origins)).await;
        let headers = format!("Origin: {asking}\r\n{preflight}");
        let reply = server.send("OPTIONS", "/v1/chat/completions", &headers, "").await;
        assert_eq!(reply.head.contains("access-control-allow-origin"), allowed, "{origins:?}: {}", reply.head);
        if allowed {
            assert_eq!(reply.status, 200, "a preflight carries no key");
            // What OpenAI's library in a page asks for.
            assert!(reply.head.contains(&format!("access-control-allow-headers: {asked}")), "{}", reply.head);
            let failed = server.send("GET", "/v1/models", &format!("Origin: {asking}\r\n"), "").await;
            assert!(failed.status == 401 && failed.head.contains("access-control-allow-origin"), "{}", failed.head);
        }
    }
}

#[tokio::test]
async fn metrics_and_the_live_view_tell_of_an_idle_server() {
    let handle = scripted(8, |request| Act::Events(speak(request, " ok")));
    let status = handle.status.clone();
    let server = Server::start(engine(handle)).await;
    let metrics = server.get("/metrics").await;
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4"), "{}", metrics.head);
    assert!(metrics.body.contains("\nnanoinfer_num_requests_running 0\n"), "{}", metrics.body);
    let cluster = server.get("/api/cluster").await.json();
    assert_eq!(cluster["ranks"][1]["heads"], json!([4, 8]));
    assert_eq!((&cluster["block_tokens"], &cluster["sequences"]), (&json!(16), &json!([])));
    assert_eq!(cluster["blocks_idle"], json!([]));

    let lives = async || {
        let cluster = server.get("/api/cluster").await.json();
        [0, 1].map(|rank| ["lost", "restarts", "back_after_s"].map(|field| cluster["ranks"][rank][field].clone()))
    };
    let unharmed = [json!(false), json!(0), json!(null)];
    assert_eq!(lives().await, [unharmed.clone(), unharmed.clone()]);
    let before = server.get("/api/steps").await.json();
    let none = json!({"before": {"sequences": [], "blocks_idle": []}, "entries": [], "next": 0});
    assert_eq!(before, none);
    status.lose([1].into_iter());
    assert_eq!(lives().await, [unharmed.clone(), [json!(true), json!(0), json!(null)]]);
    status.regain(Duration::from_millis(1500));
    assert_eq!(lives().await, [unharmed, [json!(false), json!(1), json!(1.5)]]);
    let steps = server.get("/api/steps?next=1").await.json();
    assert_eq!(steps, json!({"before": null, "entries": [{"kind": "back", "after_s": 1.5}], "next": 2}));
    let wrong = server.get("/api/steps?next=x").await;
    assert!(wrong.status == 400 && wrong.body.contains("number of an entry"), "{}", wrong.body);
}

#[tokio::test]
async fn pages_name_no_other_host() {
    let server = Server::start(saying("x")).await;
    let assets = page::ASSETS.iter().map(|(name, ..)| format!("/assets/{name}"));
    for path in ["/", "/learn", "/docs"].map(str::to_owned).into_iter().chain(assets) {
        let page = server.get(&path).await;
        assert!(page.status == 200 && page.head.contains("default-src 'none'"), "{path}: {}", page.head);
        // The namespace of SVG is a name, not an address.
        let rest = page.body.replace("http://www.w3.org/2000/svg", "");
        // Others' files name where they come from, and chapters what is worth reading; the policy lets nothing of it be loaded.
        let is_ours = !["/assets/marked.js", "/assets/highlight.js"].contains(&path.as_str()) && !path.ends_with(".md");
        assert!(!is_ours || !(rest.contains("http://") || rest.contains("https://")), "{path} names a host");
    }
    assert_eq!(server.get("/assets/mod.rs").await.status, 404);
}

#[tokio::test]
async fn every_example_of_the_document_is_answered() {
    let server = Server::start(saying("x")).await;
    let text = server.get("/openapi.json").await.body;
    // The order of use.
    let at = |word: &str| text.find(word).unwrap_or_else(|| panic!("no {word}"));
    assert!(
        ["\"openapi\"", "\"/v1/chat/completions\"", "\"/api/chat\"", "\"/livez\"", "\"components\""]
            .map(at)
            .is_sorted()
    );
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        document["paths"]["/api/show"]["post"]["requestBody"]["content"]["application/json"]["example"]["model"],
        "someone/nano-chat"
    );
    let operations = document["paths"].as_object().unwrap().iter();
    let operations =
        operations.flat_map(|(path, methods)| methods.as_object().unwrap().iter().map(move |(m, o)| (path, m, o)));
    for (path, method, operation) in operations {
        let named = operation["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == "path");
        let path = named.fold(path.clone(), |path, parameter| {
            let example = parameter["example"].as_str().unwrap_or_else(|| panic!("{path} has no example"));
            path.replace(&format!("{{{}}}", parameter["name"].as_str().unwrap()), example)
        });
        let mut bodies = vec![String::new()];
        if let Some(body) = operation["requestBody"]["content"].get("application/json") {
            let several =
                body["examples"].as_object().into_iter().flat_map(|all| all.values()).map(|one| &one["value"]);
            bodies = body.get("example").into_iter().chain(several).map(Value::to_string).collect();
            assert!(!bodies.is_empty(), "{path} has no example");
        }
        for body in bodies {
            let reply = server.send(&method.to_uppercase(), &path, "", &body).await;
            let expected = if operation["tags"][0] == "Refused" { 400 } else { 200 };
            assert_eq!(reply.status, expected, "{method} {path} {body}: {}", reply.body);
            // Said by the route, not by who reads requests.
            assert!(expected == 200 || reply.body.contains("hint: "), "{}", reply.body);
            assert!(!reply.head.contains("x-nanoinfer-warning"), "{path}: {}", reply.head);
        }
    }
}

#[tokio::test]
async fn the_document_and_the_router_know_the_same_routes() {
    let routed: BTreeSet<String> = include_str!("../mod.rs")
        .lines()
        .filter_map(|line| line.trim().strip_prefix(".route(\"")?.split('"').next())
        .map(|path| path.replace("{*id}", "{id}"))
        .collect();
    let document = document::read();
    let documented: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(routed, documented);

    let server = Server::start(saying("x")).await;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|method| *method != "parameters") {
            let path = path.replace("{id}", "nano-chat").replace("{digest}", "sha256:00").replace("{name}", "chat.js");
            let reply = server.send(&method.to_uppercase(), &path, "", "").await;
            assert!(![404, 405].contains(&reply.status), "{method} {path}: {}", reply.status);
            assert!(
                methods[method]["responses"][reply.status.to_string()].is_object(),
                "{method} {path}: {}",
                reply.status
            );
        }
    }
}
