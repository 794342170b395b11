//! How vocabularies spell bytes that need not be text: a character for each.
//!
//! Source: `bytes_to_unicode` of openai/gpt-2's encoder.py.

/// GPT-2's alphabet, by byte: printable ones stand for themselves, the others for characters from U+0100 on.
pub fn alphabet() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        let is_printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        if is_printable { char::from(byte) } else { others.next().expect("an endless range") }
    })
}
