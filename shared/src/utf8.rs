//! Text from outside, as files, pipes and requests bring it: UTF-8, which may begin with a byte-order mark.
//!
//! The mark is no text and is left off; another encoding is refused by its name, and what is no UTF-8 by its place. Nothing
//! is replaced. Does not know what the text says.

use std::{
    fs,
    io::{self, ErrorKind, Read},
    path::Path,
};

/// Marks that encodings begin with; the longer ones first, as one of them begins with a shorter one.
const MARKS: [(&[u8], &str); 4] = [
    (&[0xff, 0xfe, 0, 0], "UTF-32"),
    (&[0, 0, 0xfe, 0xff], "UTF-32"),
    (&[0xff, 0xfe], "UTF-16"),
    (&[0xfe, 0xff], "UTF-16"),
];

/// Why bytes are no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotUtf8 {
    /// They begin with the mark of another encoding.
    /// Its name is as `iconv` has it too.
    #[error("{0}, where UTF-8 is expected")]
    Encoded(&'static str),
    /// They go wrong somewhere.
    #[error("not UTF-8: byte 0x{byte:02x} at offset {offset}, in line {line}")]
    Invalid {
        /// Bytes before it.
        offset: usize,
        /// Counted from 1.
        line: usize,
        /// What is there.
        byte: u8,
    },
}

/// The text that `bytes` are, without its mark.
///
/// # Errors
/// When they are in another encoding.
pub fn text(bytes: &[u8]) -> Result<&str, NotUtf8> {
    if let Some((_, encoding)) = MARKS.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        return Err(NotUtf8::Encoded(encoding));
    }
    let text = str::from_utf8(bytes).map_err(|error| {
        let offset = error.valid_up_to();
        let line = 1 + bytes[..offset].iter().filter(|&&byte| byte == b'\n').count();
        NotUtf8::Invalid { offset, line, byte: bytes[offset] }
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The text of a file.
///
/// # Errors
/// When it cannot be read, or is in another encoding, with a hint what to do about that.
pub fn read_file(path: &Path) -> io::Result<String> {
    read(fs::File::open(path)?)
}

/// The text of a stream, to its end.
///
/// # Errors
/// As [`read_file`].
pub fn read(mut stream: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    text(&bytes).map(str::to_owned).map_err(|error| {
        let from = match error {
            NotUtf8::Encoded(encoding) => encoding,
            NotUtf8::Invalid { .. } => "ENCODING",
        };
        let hint = format!("{error}\n  hint: iconv -f {from} -t UTF-8 FILE > NEW");
        io::Error::new(ErrorKind::InvalidData, hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_no_text_wherever_text_comes_from() {
        assert_eq!(text("\u{feff}a\u{feff}b".as_bytes()), Ok("a\u{feff}b"), "only the first is one");
        assert_eq!(text(b""), Ok(""));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "\u{feff}a = 1\n").unwrap();
        assert_eq!(read_file(&path).unwrap(), "a = 1\n");
    }

    #[test]
    fn other_encodings_are_named_and_slips_are_placed() {
        let utf16 = |endian: fn(u16) -> [u8; 2]| "\u{feff}Hi".encode_utf16().flat_map(endian).collect::<Vec<u8>>();
        for bytes in [utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)] {
            assert_eq!(text(&bytes), Err(NotUtf8::Encoded("UTF-16")));
            let error = read(&bytes[..]).unwrap_err().to_string();
            assert!(error.contains("UTF-16, where UTF-8") && error.contains("hint: iconv -f UTF-16"), "{error}");
        }
        let utf32 =
            |endian: fn(u32) -> [u8; 4]| "\u{feff}Hi".chars().flat_map(|c| endian(c.into())).collect::<Vec<u8>>();
        for bytes in [utf32(u32::to_le_bytes), utf32(u32::to_be_bytes)] {
            assert_eq!(text(&bytes), Err(NotUtf8::Encoded("UTF-32")));
        }
        assert_eq!(text(b"a\nb\xe9"), Err(NotUtf8::Invalid { offset: 3, line: 2, byte: 0xe9 }));
        // Cut short.
        assert_eq!(text(b"\xef\xbb"), Err(NotUtf8::Invalid { offset: 0, line: 1, byte: 0xef }));
        let error = read(&b"caf\xe9"[..]).unwrap_err().to_string();
        assert!(error.starts_with("not UTF-8: byte 0xe9 at offset 3, in line 1\n  hint: iconv"), "{error}");
    }
}
