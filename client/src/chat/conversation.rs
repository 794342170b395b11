//! What has been said, and how answers are to be sampled: lines in, the next request out.
//!
//! Knows commands and messages; does not know terminals or servers.

use std::fs;

use nanoinfer_launch::closest;
use serde_json::{Map, Value, json};

/// `/exit` and `/bye` are what other programs call `/quit`.
const COMMANDS: [&str; 10] =
    ["/system", "/params", "/reset", "/retry", "/save", "/stats", "/help", "/quit", "/exit", "/bye"];
/// How answers are sampled, and what the route does where neither conversation nor model say.
const PARAMETERS: [(&str, &str); 7] = [
    ("temperature", "1"),
    ("top_p", "1"),
    ("top_k", "0: all"),
    ("min_p", "0"),
    ("repetition_penalty", "1"),
    ("max_tokens", "as many as fit"),
    ("seed", "another for each answer"),
];

const HELP: &str = "  /system TEXT         instructions before the conversation; without a text none
  /params              how answers are sampled
  /params NAME VALUE   sets one of them; without a value it is the default again
  /reset               forgets the conversation
  /retry               answers the last message again
  /save FILE           writes the conversation as JSON, for /v1/chat/completions
  /stats               tells tokens and times after each answer, or no more
  /quit                ends, as Ctrl-D does
  Ctrl-C               stops the answer; what came of it stays
  a \\ at a line's end goes on in the next line";

/// A conversation so far.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    system: Option<String>,
    messages: Vec<Value>,
    /// The answer that is being given anew, until there is another.
    retried: Option<Value>,
    parameters: Map<String, Value>,
    /// What the model's makers recommend, by our names.
    recommended: Vec<(String, String)>,
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// An answer.
    Turn,
    /// These are to be shown.
    Words(String),
    /// Statistics on, or off again.
    Statistics,
    Quit,
}

impl Conversation {
    /// `recommended` is what the server says of the model's own settings, as Ollama writes it: a name and a value a line.
    pub(super) fn new(system: Option<String>, recommended: &str) -> Self {
        let ours = |name: &str| if name == "num_predict" { "max_tokens" } else { name }.to_owned();
        let lines = recommended.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
        let recommended = lines.map(|(name, value)| (ours(name), value.trim().to_owned())).collect();
        Self { system: system.filter(|text| !text.is_empty()), recommended, ..Self::default() }
    }

    /// Takes a line; the error says what is wrong with a command.
    pub(super) fn take(&mut self, line: &str) -> Result<Said, String> {
        if !line.starts_with('/') {
            self.messages.push(json!({"role": "user", "content": line}));
            return Ok(Said::Turn);
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "/system" => {
                self.system = Some(rest.to_owned()).filter(|text| !text.is_empty());
                let state = if self.system.is_some() { "set" } else { "gone" };
                Ok(Said::Words(format!("the system text is {state}")))
            }
            "/params" => self.parameter(rest).map(Said::Words),
            "/reset" => {
                self.messages.clear();
                Ok(Said::Words("the conversation is forgotten".into()))
            }
            "/retry" => self.retry(),
            "/save" => self.save(rest).map(Said::Words),
            "/stats" => Ok(Said::Statistics),
            "/help" => Ok(Said::Words(HELP.into())),
            "/quit" | "/exit" | "/bye" => Ok(Said::Quit),
            other => Err(unknown(other, closest(other, COMMANDS), "/help lists the commands")),
        }
    }

    /// The request that the next answer answers.
    pub(super) fn request(&self) -> Value {
        let mut request = self.parameters.clone();
        request.insert("messages".into(), self.all().into());
        request.insert("stream".into(), true.into());
        request.insert("stream_options".into(), json!({"include_usage": true}));
        request.into()
    }

    /// What came of it. Where nothing did, the answer before stands, or the turn is forgotten: it can be said again.
    pub(super) fn answered(&mut self, text: String) {
        let before = self.retried.take();
        match (text.is_empty(), before) {
            (false, _) => self.messages.push(json!({"role": "assistant", "content": text})),
            (true, Some(before)) => self.messages.push(before),
            (true, None) => drop(self.messages.pop()),
        }
    }

    fn all(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain(self.messages.iter().cloned()).collect()
    }

    fn retry(&mut self) -> Result<Said, String> {
        self.retried = self.messages.pop_if(|message| message["role"] == "assistant");
        if self.retried.is_some() { Ok(Said::Turn) } else { Err("there is no answer yet".into()) }
    }

    fn parameter(&mut self, words: &str) -> Result<String, String> {
        let (name, value) = words.split_once(char::is_whitespace).unwrap_or((words, ""));
        if name.is_empty() {
            let line = |(name, default): &(&str, &str)| {
                let recommended = self.recommended.iter().find(|(known, _)| known == name);
                let value = match (self.parameters.get(*name), recommended) {
                    (Some(value), _) => value.to_string(),
                    (None, Some((_, value))) => format!("{value} (the model's)"),
                    (None, None) => format!("{default} (the default)"),
                };
                format!("  {name:<20} {value}")
            };
            return Ok(PARAMETERS.iter().map(line).collect::<Vec<_>>().join("\n"));
        }
        let names = PARAMETERS.map(|(name, _)| name);
        if !names.contains(&name) {
            let all = format!("there are {}", names.join(", "));
            return Err(unknown(&format!("parameter {name}"), closest(name, names), &all));
        }
        let value = value.trim();
        if value.is_empty() {
            self.parameters.remove(name);
            return Ok(format!("{name} is the default again"));
        }
        // Whether it is in range is for the server to say.
        let number = serde_json::from_str(value).ok().filter(Value::is_number);
        let number = number.ok_or_else(|| format!("{name} should be a number, got {value}"))?;
        let said = format!("{name} is {number}");
        self.parameters.insert(name.into(), number);
        Ok(said)
    }

    fn save(&self, path: &str) -> Result<String, String> {
        if path.is_empty() {
            return Err("/save FILE: which file?".into());
        }
        let text = format!("{:#}\n", json!({"messages": self.all()}));
        fs::write(path, text).map_err(|error| format!("cannot write {path}: {error}"))?;
        Ok(format!("{} messages are in {path}", self.all().len()))
    }
}

fn unknown(what: &str, near: Option<&str>, hint: &str) -> String {
    match near {
        Some(near) => format!("there is no {what}; did you mean {near}?"),
        None => format!("there is no {what}; {hint}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_and_instructions_make_a_request() {
        let mut conversation = Conversation::new(None, "");
        conversation.take("/system Be brief.").unwrap();
        conversation.take("/params temperature 0.5").unwrap();
        assert_eq!(conversation.take("Hi"), Ok(Said::Turn));
        conversation.answered("Hello.".into());
        assert_eq!(conversation.take("Bye"), Ok(Said::Turn));
        let request = conversation.request();
        let roles: Vec<_> = request["messages"].as_array().unwrap().iter().map(|m| m["role"].clone()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert_eq!((&request["temperature"], &request["stream"]), (&json!(0.5), &json!(true)));

        conversation.answered(String::new());
        assert_eq!(conversation.request()["messages"].as_array().unwrap().len(), 3, "an unanswered turn is forgotten");
        assert_eq!(conversation.take("/retry"), Ok(Said::Turn));
        assert_eq!(conversation.request()["messages"].as_array().unwrap().len(), 2);
        conversation.answered(String::new());
        assert_eq!(conversation.request()["messages"][2]["content"], "Hello.", "the answer before stands");
        conversation.take("/reset").unwrap();
        conversation.take("/params temperature").unwrap();
        assert_eq!(conversation.request()["messages"], json!([{"role": "system", "content": "Be brief."}]));
        assert!(conversation.request().get("temperature").is_none());
    }

    #[test]
    fn parameters_are_told_with_their_values() {
        let mut conversation = Conversation::new(None, "temperature 0.3\nnum_predict 96");
        conversation.take("/params top_p 0.5").unwrap();
        let Ok(Said::Words(words)) = conversation.take("/params") else { panic!("they are to be shown") };
        for line in [
            "temperature          0.3 (the model's)",
            "top_p                0.5",
            "top_k                0: all (the default)",
        ] {
            assert!(words.contains(&format!("  {line}\n")), "{line} in {words}");
        }
        assert!(words.contains("max_tokens           96 (the model's)"), "{words}");
        assert!(HELP.lines().all(|line| line.len() <= 80));
    }

    #[test]
    fn slips_are_named() {
        let mut conversation = Conversation::new(None, "");
        assert!(conversation.take("/sytem x").unwrap_err().contains("did you mean /system?"));
        assert_eq!(conversation.take("/bye"), Ok(Said::Quit));
        assert!(conversation.take("/wat").unwrap_err().contains("/help"));
        assert!(conversation.take("/params temprature 1").unwrap_err().contains("did you mean temperature?"));
        assert!(conversation.take("/params seed x").unwrap_err().contains("a number"));
        assert!(conversation.take("/save").unwrap_err().contains("which file"));
        assert!(conversation.take("/save /nonexistent/x").unwrap_err().contains("cannot write"));
        assert!(conversation.take("/retry").is_err());
    }
}
