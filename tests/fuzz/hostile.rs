//! Files made to do harm: nothing runs, nothing grows, and the error says what was refused.

use std::fs;

use nanoinfer_worker::checkpoint::Checkpoint;

use crate::{bound_memory, zip::zip};

/// What opening these bytes is answered with.
fn refusal(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(&[path]).unwrap_err().to_string();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
    error
}

fn pickled(pickle: &[u8]) -> String {
    refusal(&zip(&[("archive/data.pkl", pickle), ("archive/byteorder", b"little")]))
}

#[test]
fn a_pickle_that_wants_to_run_something_is_refused_by_name() {
    bound_memory();
    for (pickle, global) in [
        (&b"\x80\x02cos\nsystem\nX\x04\0\0\0truRE."[..], "os.system"),
        (b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.", "posix.system"),
        (b"\x80\x02cbuiltins\neval\nX\x01\0\0\x001\x85R.", "builtins.eval"),
        (b"\x80\x02c__builtin__\nexec\n.", "__builtin__.exec"),
        // The same by names on the stack.
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        // Allowed modules, other names: attributes of attributes too.
        (b"\x80\x02ctorch\nload\nX\x01\0\0\0x\x85R.", "torch.load"),
        (b"\x80\x04\x8c\x0ctorch._utils\x8c\x0f_import_dotted_\x93.", "torch._utils._import_dotted_"),
        (b"\x80\x02}X\x05\0\0\0modelcsubprocess\nPopen\n(X\x02\0\0\0idtRs.", "subprocess.Popen"),
        (
            b"\x80\x02ctransformers.models.gpt2.modeling_gpt2\nGPT2LMHeadModel\n)\x81}b.",
            "modeling_gpt2.GPT2LMHeadModel",
        ),
    ] {
        let error = pickled(pickle);
        assert!(error.contains(global) && error.contains("refused"), "{error}");
    }
    // The legacy format goes through the same reader.
    let legacy =
        [&b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."[..], b"\x80\x02cos\nsystem\n)R."].concat();
    assert!(refusal(&legacy).contains("os.system"));
    // Extension registry, instances by line, out-of-band buffers: no instruction for them.
    for pickle in [&b"\x80\x02\x82\x01."[..], b"(ios\nsystem\n.", b"\x80\x05\x97.", b"\x80\x02Pid\n."] {
        assert!(pickled(pickle).contains("is not read"), "{}", pickled(pickle));
    }
}

#[test]
fn sizes_that_a_pickle_claims_are_not_taken_on_its_word() {
    bound_memory();
    for pickle in [
        &b"\x80\x02X\xff\xff\xff\xff"[..],
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x80\x02\x8a\xff",
    ] {
        assert!(pickled(pickle).contains("cut short"), "{}", pickled(pickle));
    }
    // A memo index of 4 billion, and one that was never set.
    assert!(pickled(b"\x80\x02}r\xff\xff\xff\xff.").contains("no state dict"));
    assert!(pickled(b"\x80\x02j\xff\xff\xff\xff.").contains("before it is made"));
}

#[test]
fn nesting_and_sharing_cost_no_more_than_their_length() {
    bound_memory();
    let deep = |opcode: u8| [&b"\x80\x02]"[..], &vec![opcode; 900_000], b"."].concat();
    assert!(pickled(&deep(b'\x85')).contains("no state dict"));
    let marks = [&b"\x80\x02"[..], &vec![b'('; 5_000_000], b"N."].concat();
    assert!(pickled(&marks).contains("no state dict"), "{}", pickled(&marks));
    let many = [&b"\x80\x02"[..], &vec![b')'; 3_000_000], b"."].concat();
    assert!(pickled(&many).contains("more than"), "{}", pickled(&many));
    let long = [&b"\x80\x02"[..], &vec![b'('; 20_000_000], b"N."].concat();
    assert!(pickled(&long).contains("more than"), "{}", pickled(&long));
    // A list of many pairs, given to many calls.
    let mut bomb = b"\x80\x02]q\0(NN\x86q\x01".to_vec();
    bomb.extend(b"h\x01".repeat(100_000));
    bomb.push(b'e');
    bomb.extend(b"ccollections\nOrderedDict\nq\x02");
    bomb.extend(b"h\x02h\0\x85R0".repeat(100_000));
    bomb.push(b'.');
    assert!(pickled(&bomb).contains("more than"), "{}", pickled(&bomb));
    // Lists and dictionaries that contain themselves.
    assert!(pickled(b"\x80\x02]q\0h\0a.").contains("no state dict"));
    assert!(pickled(b"\x80\x02}q\0X\x05\0\0\0modelh\0s.").contains("no state dict"));
}

#[test]
fn archives_made_to_do_harm_are_refused() {
    bound_memory();
    // Paths are keys: nothing is written anywhere (`refusal` looks).
    let slip = zip(&[("archive/data.pkl", b"\x80\x02}."), ("../../../tmp/evil", b"x"), ("/etc/evil", b"x")]);
    assert!(refusal(&slip).contains("no state dict"));
    // A compressed entry is not unpacked: there is no bomb to go off.
    let mut bomb = zip(&[("archive/data.pkl", b"\x80\x02}.")]);
    let directory = bomb.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    bomb[directory + 10] = 8;
    assert!(refusal(&bomb).contains("compressed"));
    // Sizes and places beyond the file.
    for (offset, reason) in [(20, "compressed"), (42, "outside")] {
        let mut broken = zip(&[("archive/data.pkl", b"\x80\x02}.")]);
        broken[directory + offset..directory + offset + 4].copy_from_slice(&[0xfe, 0xff, 0xff, 0x7f]);
        assert!(refusal(&broken).contains(reason), "{}", refusal(&broken));
    }
    let mut many = zip(&[("archive/data.pkl", b"\x80\x02}.")]);
    let end = many.len() - 22;
    many[end + 10..end + 12].copy_from_slice(&[0xff, 0xff]);
    assert!(refusal(&many).contains("broken"), "{}", refusal(&many));
    assert!(refusal(&zip(&[("archive/data.pkl", b"."), ("archive/data.pkl", b".")])).contains("one name"));
    assert!(refusal(&zip(&[("archive/version", b"3")])).contains("no data.pkl"));
    assert!(refusal(&zip(&[("a/data.pkl", b"\x80\x02}."), ("a/byteorder", b"big")])).contains("big-endian"));
}
