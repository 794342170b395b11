//! What shells, proxies and other systems' editors do to a client.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use super::{nanoinfer, text};

/// Ends with the test, however that ends.
pub(super) struct Served {
    child: Child,
    /// Host and port.
    pub(super) address: String,
}

impl Served {
    pub(super) fn start(arguments: &[&str]) -> Self {
        let serve = ["serve", "--port", "0", "--threads", "1", "--log", "error"];
        let mut child = nanoinfer(&[&serve, arguments].concat()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready =
            lines.map_while(Result::ok).find_map(|line| Some(line.strip_prefix("ready on http://")?.to_owned()));
        Self { child, address: ready.unwrap() }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Runs a command with this on its standard input.
fn fed(mut command: Command, bytes: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // Whoever does not read on says why.
    let _ = child.stdin.take().unwrap().write_all(bytes);
    child.wait_with_output().unwrap()
}

/// A pipe that nobody reads.
fn unread() -> io::PipeWriter {
    io::pipe().unwrap().1
}

#[test]
fn a_reader_that_has_left_is_no_failure_and_a_full_disk_is_one() {
    let served = Served::start(&[]);
    let url = served.address.as_str();
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| folder.path().join(name).display().to_string());
    let corpus = folder.path().join("corpus.txt");
    std::fs::write(&corpus, "The capital of France is Paris. ".repeat(20)).unwrap();
    let corpus = corpus.to_str().unwrap();
    let converted = |to| vec!["convert", "nano-chat", to];
    let verbs = |to| {
        vec![
            vec!["--version"],
            vec!["--help"],
            vec!["eval", "--help"],
            vec!["inspect", "nano-chat", "--nproc", "2"],
            converted(to),
            vec!["generate", "--url", url, "--prompt", "Hi"],
            vec!["generate", "--url", url, "--prompt", "Hi", "--stream"],
            vec!["generate", "--url", url, "--prompt", "Hi", "--explain"],
            vec!["chat", "--url", url],
            vec!["eval", "--url", url, "--limit", "2"],
            vec!["eval", "verify", "--text", corpus, "--ranks", "1", "--tokens", "2"],
            vec!["eval", "speed", "--prompts", "1", "--prompt-tokens", "8", "--runs", "1"],
            vec!["bench", "serve", "--url", url, "--requests", "2", "--rate", "100", "--tokens", "4"],
            vec!["bench", "decode", "--batch", "1", "--prompt-tokens", "4", "--tokens", "4", "--runs", "1"],
        ]
    };
    for arguments in verbs(&first) {
        let mut command = nanoinfer(&arguments);
        command.stdout(unread());
        let output = fed(command, b"Hi\nHi\n");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
        assert!(!said.contains("error") && !said.contains("panicked"), "{arguments:?}: {said}");
    }
    for arguments in verbs(&second) {
        let mut command = nanoinfer(&arguments);
        command.stdout(File::options().write(true).open("/dev/full").unwrap());
        let output = fed(command, b"Hi\nHi\n");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert_eq!(
            said.matches("error: cannot write to standard output: No space left").count(),
            1,
            "{arguments:?}: {said}"
        );
    }
    // Nor does it matter that nobody reads what goes wrong: the exit code says it.
    for (arguments, code) in [
        (&["inspect", "./no/such/folder"][..], 2),
        (&["generat"], 2),
        (&["chat", "--url", url], 0),
        (&["eval", "--url", "http://127.0.0.1:9"], 1),
    ] {
        let mut command = nanoinfer(arguments);
        command.stdout(unread()).stderr(unread());
        assert_eq!(fed(command, b"/nothing\nHi\n").status.code(), Some(code), "{arguments:?}");
    }
}

/// Records the first lines of what it is asked, and refuses it.
struct Proxy {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for socket in listener.incoming() {
                let socket: TcpStream = socket.unwrap();
                let head = BufReader::new(&socket).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
                log.lock().unwrap().push(head.collect::<Vec<_>>().join("\n"));
                let _ = (&socket).write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
            }
        });
        Self { address, asked }
    }

    fn variables(&self) -> Vec<(String, String)> {
        let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
        let all = names.iter().flat_map(|name| [name.to_string(), name.to_ascii_lowercase()]);
        all.map(|name| (name, format!("http://{}", self.address))).collect()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

#[test]
fn no_proxy_is_asked_for_this_machine() {
    const QUESTION: &str = "What is the capital of France?";
    let proxy = Proxy::start();
    let served = Served::start(&["--api-key", "s3cret"]);
    let port = served.address.rsplit_once(':').unwrap().1;
    let urls = ["127.0.0.1", "127.1", "localhost"].map(|host| format!("http://{host}:{port}"));
    let targets = urls.iter().map(|url| vec!["--url", url, "--api-key", "s3cret"]).chain([vec![]]);
    for target in targets {
        let mut command = nanoinfer(&["generate", "--prompt", QUESTION, "--temperature", "0"]);
        let output = command.args(&target).env_remove("NO_PROXY").envs(proxy.variables()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text(&output), "The capital of France is Paris.\n", "{target:?}: {said}");
    }
    assert_eq!(proxy.asked(), Vec::<String>::new());

    // What is elsewhere is asked through it, and said to be.
    let mut command = nanoinfer(&["generate", "--prompt", QUESTION, "--url", "http://model.invalid:8000"]);
    let output = command.envs(proxy.variables()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.contains("through the proxy") && said.contains("NO_PROXY"),
        "{said}"
    );
    assert!(proxy.asked()[0].starts_with("CONNECT model.invalid:8000 "), "{:?}", proxy.asked());

    for (value, code, word) in [("socks5://127.0.0.1:9", 1, "cannot reach"), ("gopher://x", 2, "http_proxy")] {
        let mut command = nanoinfer(&["generate", "--prompt", QUESTION, "--url", "http://model.invalid:8000"]);
        let output = command.env("http_proxy", value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(code) && said.contains(word) && !said.contains("panicked"),
            "{value}: {said}"
        );
    }
}

#[test]
fn a_byte_order_mark_changes_no_answer() {
    let served = Served::start(&[]);
    let url = served.address.as_str();
    let question = "\u{feff}What is the capital of France?\r\n";
    let output = fed(nanoinfer(&["generate", "--url", url, "--temperature", "0"]), question.as_bytes());
    assert_eq!(text(&output), "The capital of France is Paris.\n", "{}", String::from_utf8_lossy(&output.stderr));
    let turns = "\u{feff}/params temperature 0\r\nWhat is the capital of France?\r\n";
    let output = fed(nanoinfer(&["chat", "--url", url]), turns.as_bytes());
    assert_eq!(text(&output), "temperature is 0\nThe capital of France is Paris.\n");

    let utf16: Vec<u8> = question.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (verb, code) in [("generate", 2), ("chat", 1)] {
        let output = fed(nanoinfer(&[verb, "--url", url]), &utf16);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains("UTF-16, where UTF-8"), "{verb}: {said}");
    }

    // Perplexity was a thousand times as high.
    let folder = tempfile::tempdir().unwrap();
    let plain = std::fs::read(super::eval::data("text.txt")).unwrap();
    let [without, with] = [&b""[..], b"\xef\xbb\xbf"].map(|mark| {
        let file = folder.path().join("text.txt");
        std::fs::write(&file, [mark, &plain].concat()).unwrap();
        nanoinfer(&["eval", "--url", url, "--eval-set", file.to_str().unwrap()]).output().unwrap()
    });
    assert!(text(&without).starts_with("ppl") && text(&without) == text(&with), "{without:?} {with:?}");
}
