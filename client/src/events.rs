//! Server-sent events, as all streams of servers are: `data: {…}` and an empty line each, `data: [DONE]` at a good end.
//!
//! ```text
//! bytes ─► Lines ─► Events ─► objects
//!          end in LF, CR, CRLF    `data` lines of an event are one text, joined by LF; all other fields are ignored
//! ```
//! Invariant: an event is given out as soon as the line that ends it has come, however the bytes were cut; a CR ends its line
//! at once, and an LF that follows it is no line. Reference: "Server-sent events" of the WHATWG's HTML standard.

use std::io::BufRead;

use anyhow::{Context, bail};
use nanoinfer_eval::connection::said;
use serde_json::Value;

/// Longest event, and longest line, that is still one.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// The objects of a stream. Ends after `[DONE]`, or with an error: the server's, or that there was no good end.
pub(crate) struct Events<R> {
    lines: Lines<R>,
    is_over: bool,
}

/// Lines of a stream, whatever they end in.
struct Lines<R> {
    stream: R,
    /// What has come of the next one.
    begun: Vec<u8>,
    /// The last one ended in a CR: an LF that follows belongs to it.
    after_cr: bool,
    is_first: bool,
}

impl<R: BufRead> Lines<R> {
    /// The next line without its end; none where the stream ends, even in the midst of one.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let buffer = self.stream.fill_buf().context("the answer broke off")?;
            if buffer.is_empty() {
                return Ok(None);
            }
            if std::mem::take(&mut self.after_cr) && buffer[0] == b'\n' {
                self.stream.consume(1);
                continue;
            }
            let end = buffer.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let part = &buffer[..end.unwrap_or(buffer.len())];
            if self.begun.len() + part.len() > MAX_EVENT_BYTES {
                bail!("the server sent a line of more than {MAX_EVENT_BYTES} bytes");
            }
            self.begun.extend_from_slice(part);
            self.after_cr = end.is_some_and(|end| buffer[end] == b'\r');
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.stream.consume(used);
            if end.is_some() {
                // What is no UTF-8 becomes U+FFFD, as the standard has it.
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.begun)).into_owned();
                let is_first = std::mem::take(&mut self.is_first);
                return Ok(Some(line.strip_prefix('\u{feff}').filter(|_| is_first).map(str::to_owned).unwrap_or(line)));
            }
        }
    }
}

impl<R: BufRead> Events<R> {
    pub(crate) fn new(stream: R) -> Self {
        let lines = Lines { stream, begun: Vec::new(), after_cr: false, is_first: true };
        Self { lines, is_over: false }
    }

    /// The text of the next event, and whether the line that ends it has come; none at the end of the stream.
    fn data(&mut self) -> anyhow::Result<Option<(String, bool)>> {
        // Every line of it with an LF, of which the last is none of its own.
        let mut data = String::new();
        let mut is_ended = false;
        while let Some(line) = self.lines.next()? {
            is_ended = line.is_empty() && !data.is_empty();
            if is_ended {
                break;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            if field != "data" {
                continue;
            }
            let value = value.strip_prefix(' ').unwrap_or(value);
            if data.len() + value.len() > MAX_EVENT_BYTES {
                bail!("the server sent an event of more than {MAX_EVENT_BYTES} bytes");
            }
            data += value;
            data.push('\n');
        }
        Ok(data.pop().map(|_| (data, is_ended)))
    }

    fn read(&mut self) -> anyhow::Result<Option<Value>> {
        while let Some((data, is_ended)) = self.data()? {
            let data = data.trim();
            // An event that its stream broke off is none. But a good end, or the reason for a bad one, is no less so where a
            // server hangs up right after it.
            if data == "[DONE]" {
                return Ok(None);
            }
            if data.is_empty() {
                continue;
            }
            let read = serde_json::from_str(data);
            if let Ok(error) = &read.as_ref().map(|object: &Value| &object["error"])
                && !error.is_null()
            {
                bail!("the server gave up: {}", said(error));
            }
            if is_ended {
                return Ok(Some(read.with_context(|| format!("the server sent no event: {data}"))?));
            }
        }
        bail!("the answer broke off before its end")
    }
}

impl<R: BufRead> Iterator for Events<R> {
    type Item = anyhow::Result<Value>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let event = self.read().transpose();
        self.is_over = !matches!(event, Some(Ok(_)));
        event
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, BufReader, Read};

    use super::*;

    /// What tokens say, and how it ends where that is not well.
    fn read(stream: impl BufRead) -> (Vec<String>, Option<String>) {
        let (good, bad): (Vec<_>, Vec<_>) = Events::new(stream).partition(Result::is_ok);
        let good = good.into_iter().map(|event| event.unwrap()["token"].as_str().unwrap().to_owned()).collect();
        (good, bad.into_iter().next().map(|error| error.unwrap_err().to_string()))
    }

    /// One piece a read, then nothing more for ever: reading on is an error.
    struct Pieces<'a>(Vec<&'a [u8]>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::other("read on"));
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_stream_ends_well_or_says_why_not() {
        let read = |text: &str| read(text.as_bytes());
        let events = "data: {\"token\":\"He\"}\n\n: comment\ndata: {\"token\":\"llo\"}\n\ndata: [DONE]\n\ndata: {}\n";
        assert_eq!(read(events), (vec!["He".into(), "llo".into()], None));
        let (good, error) = read("data: {\"token\":\"He\"}\n\ndata: {\"error\":\"rank 1 is gone\"}\n\n");
        assert_eq!((good, error), (vec!["He".into()], Some("the server gave up: rank 1 is gone".into())));
        assert!(read("data: {\"token\":\"He\"}\n\n").1.unwrap().contains("broke off"));
        assert!(read("data: {\"error\":{\"message\":\"no\"}}\n").1.unwrap().ends_with("no"));
        assert_eq!(read("data: [DONE]\n").1, None);
        for unfinished in ["data: {\"token\":\"He\"}\n", "data: {\"token\":\"He\"}", "data: [DO", ""] {
            let (good, error) = read(unfinished);
            assert!(good.is_empty() && error.unwrap().contains("broke off"), "{unfinished}");
        }
        assert!(read("data: x\n\n").1.unwrap().contains("no event: x"));
    }

    #[test]
    fn events_are_read_as_the_standard_and_other_servers_write_them() {
        for (stream, tokens) in [
            ("\u{feff}data:{\"token\":\"a\"}\n\ndata: [DONE]\n\n", &["a"][..]),
            ("data: {\"token\":\ndata:\"a\"\ndata: }\n\ndata: [DONE]\n\n", &["a"]),
            ("event: message\nid: 7\nretry: 5\ndata: {\"token\":\"a\"}\n\nevent: x\n\ndata: [DONE]\n\n", &["a"]),
            (": keep-alive\n\n:\n\ndata\n\ndata:\n\ndata: {\"token\":\"a\"}\n\ndata: [DONE]\n\n", &["a"]),
            ("dat: 1\ndataa: 2\n data: 3\ndata: {\"token\":\"a\"}\n\n\n\ndata:  [DONE] \n\n", &["a"]),
            ("data: {\"token\":\" a\u{2028}\u{85}\"}\n\n\u{feff}data: {}\ndata:[DONE]\n\n", &[" a\u{2028}\u{85}"]),
        ] {
            for end in ["\n", "\r", "\r\n"] {
                let (good, error) = read(stream.replace('\n', end).as_bytes());
                assert_eq!((good, error), (tokens.iter().map(|token| token.to_string()).collect(), None), "{stream}");
            }
        }
    }

    #[test]
    fn however_the_bytes_are_cut_the_events_are_the_same() {
        let stream = "\u{feff}: c\r\ndata: {\"token\":\r\ndata: \"é\"}\r\n\r\ndata: {\"token\":\"b\"}\r\rdata: {\"token\":\"c\"}\n\n\r\ndata:[DONE]\r\n\r\n";
        let bytes = stream.as_bytes();
        let whole = (["é", "b", "c"].map(String::from).to_vec(), None);
        for first in 0..bytes.len() {
            for second in first..bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let pieces = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
                assert_eq!(read(BufReader::new(Pieces(pieces))), whole, "cut at {first} and {second}");
            }
        }
        assert_eq!(read(BufReader::new(Pieces(bytes.chunks(1).collect()))), whole);
    }

    #[test]
    fn an_event_is_given_out_when_the_line_that_ends_it_has_come() {
        for end in ["\n\n", "\r\r", "\r\n\r", "\r\n\n", "\n\r"] {
            let first = format!("data: {{\"token\":\"a\"}}{end}");
            let mut events = Events::new(BufReader::new(Pieces(vec![first.as_bytes()])));
            assert_eq!(events.next().unwrap().unwrap()["token"], "a", "{end:?}");
            assert!(format!("{:#}", events.next().unwrap().unwrap_err()).contains("read on"));
        }
    }

    #[test]
    fn lines_and_events_have_bounds() {
        let long = "x".repeat(MAX_EVENT_BYTES);
        assert!(read(format!("{long}x").as_bytes()).1.unwrap().contains("a line of more than"));
        let halves = format!("data:{0}\ndata:{0}\ndata:{0}\n\n", &long[..MAX_EVENT_BYTES / 2]);
        assert!(read(halves.as_bytes()).1.unwrap().contains("an event of more than"));
    }
}
