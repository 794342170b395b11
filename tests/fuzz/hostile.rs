//! Files made to do harm: nothing runs, nothing grows, and the error says what was refused.

use std::fs;

use nanoinfer_checkpoint::{Checkpoint, TokenizerFiles};
use nanoinfer_shared::ModelShape;

use crate::{bound_memory, counting::counted, zip::zip};

/// Bytes that opening may ask for, in all, for each of a file's: more would be work that its length does not bound.
const BYTES_ASKED: usize = 256;
/// The same for bytes held at once. An instruction of one byte makes a value of 32, in a list that has room for twice as many.
const BYTES_HELD: usize = 80;
/// What it asks for, however short the file is.
const LEAST_BYTES: usize = 1 << 16;
const LONGEST_MESSAGE: usize = 1000;

/// What opening, refining and checking these bytes is answered with, which costs no more than they are long.
fn refusal_with(bytes: &[u8], config: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    fs::write(&path, bytes).unwrap();
    let model_shape = ModelShape::from_config_json(config).unwrap();
    let open = || {
        let checkpoint = Checkpoint::open(&[path])?;
        let model_shape = checkpoint.refine(model_shape);
        checkpoint.check(&model_shape)?;
        checkpoint.fingerprint();
        Ok::<_, nanoinfer_checkpoint::CheckpointError>(())
    };
    let (result, held, asked) = counted(open);
    let error = result.unwrap_err().to_string();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
    let start: String = error.chars().take(LONGEST_MESSAGE).collect();
    assert!(error.len() <= LONGEST_MESSAGE, "{} bytes: {start}", error.len());
    assert!(error.chars().all(|c| c == '\n' || !c.is_control()), "{error:?}");
    assert!(held <= LEAST_BYTES + BYTES_HELD * bytes.len(), "{held} B held for a file of {} B: {error}", bytes.len());
    assert!(asked <= LEAST_BYTES + BYTES_ASKED * bytes.len(), "{asked} B for a file of {} B: {error}", bytes.len());
    error
}

fn refusal(bytes: &[u8]) -> String {
    refusal_with(bytes, "{}")
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
fn pickles_of_tokenizers_made_to_do_harm_are_refused() {
    bound_memory();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.pkl");
    let said = |pickle: &[u8]| {
        fs::write(&path, pickle).unwrap();
        let (result, held, asked) = counted(|| TokenizerFiles::of_pickle(&path));
        let error = result.unwrap_err().to_string();
        assert!(error.len() <= LONGEST_MESSAGE && error.chars().all(|c| c == '\n' || !c.is_control()), "{error:?}");
        assert!(held <= LEAST_BYTES + BYTES_HELD * pickle.len(), "{held} B held for {} B: {error}", pickle.len());
        assert!(asked <= LEAST_BYTES + BYTES_ASKED * pickle.len(), "{asked} B for {} B: {error}", pickle.len());
        error
    };
    let encoding = b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81";
    let with = |state: &[u8]| [&encoding[..], state, b"b."].concat();
    for (pickle, part) in [
        (
            b"\x80\x04cos\nsystem\n\x8c\x02id\x85R.".to_vec(),
            "refused: the file asks for `os.system`, which is no part of a tokenizer",
        ),
        // What a state dict may name is none of it either.
        (b"\x80\x04ctorch\nFloatStorage\n.".to_vec(), "refused"),
        (b"\x80\x04ctiktoken.load\nread_file\n.".to_vec(), "`tiktoken.load.read_file`"),
        // Bytes as protocol 2 writes them.
        (b"\x80\x02c_codecs\nencode\n.".to_vec(), "`_codecs.encode`"),
        (b"\x80\x04}.".to_vec(), "holds no tokenizer of tiktoken"),
        ([&encoding[..], b"."].concat(), "holds no tokenizer of tiktoken"),
        (with(b"\x8c\x04gpt2"), "only names `gpt2`"),
        (with(b"}"), "has no `pat_str`"),
    ] {
        let error = said(&pickle);
        assert!(error.contains(part), "{error}");
    }
    // One token of a megabyte, and a special one, given to 100,000 pairs: read once, looked at never.
    let (long, number) = (vec![b'x'; 1 << 20], |i: u32| [&b"J"[..], &i.to_le_bytes()].concat());
    let many = |key: &[u8]| {
        [b"}(".to_vec(), (0..100_000).flat_map(|i| [key, &number(i)].concat()).collect(), b"u".to_vec()].concat()
    };
    let long = |opcode: u8| [&[opcode][..], &(long.len() as u32).to_le_bytes(), &long, b"q\x000"].concat();
    let field = |name: &str, value: &[u8]| [&text(name)[..], value].concat();
    let state = |fields: &[Vec<u8>]| [&b"}("[..], &fields.concat(), b"u"].concat();
    let words = field("pat_str", b"X\x01\0\0\0a");
    let tokens = [long(b'B'), with(&state(&[words.clone(), field("mergeable_ranks", &many(b"h\0"))]))].concat();
    assert!(said(&tokens).contains("longer than those of any text"), "{}", said(&tokens));
    let none = field("mergeable_ranks", b"}");
    let specials = [long(b'X'), with(&state(&[words, none, field("special_tokens", &many(b"h\0"))]))].concat();
    assert!(said(&specials).contains("a token of it is none"), "{}", said(&specials));
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

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn tuple(numbers: &[i64]) -> Vec<u8> {
    let number = |n: &i64| [&b"\x8a\x08"[..], &n.to_le_bytes()].concat();
    [b"(".to_vec(), numbers.iter().flat_map(number).collect(), b"t".to_vec()].concat()
}

/// A tensor over storage `key`.
fn tensor(key: &str, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let storage = [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(key), text("cpu")].concat();
    [&b"ctorch._utils\n_rebuild_tensor_v2\n(("[..], &storage, b"K\x04tQK\0", &tuple(shape), &tuple(strides), b"\x89NtR"]
        .concat()
}

fn state_dict(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let pairs = pairs.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"\x80\x02}(".to_vec(), pairs, b"u.".to_vec()].concat()
}

/// With one storage of 16 bytes.
fn torch_file(pickle: &[u8]) -> Vec<u8> {
    zip(&[("archive/data.pkl", pickle), ("archive/byteorder", b"little"), ("archive/data/0", &[0; 16])])
}

#[test]
fn tensors_that_claim_more_than_there_is_are_not_read() {
    bound_memory();
    let huge = [1 << 40, 1 << 20];
    for (shape, strides) in [
        // Rows or columns without end, each over the same four numbers; products beyond 64 bits.
        (huge, [0, 0]),
        ([1 << 40, 4], [0, 1]),
        ([4, 1 << 40], [1, 0]),
        ([5, 1], [0, 1]),
        ([1 << 62, 1 << 62], [0, 0]),
        // Views that overlap.
        ([3, 2], [1, 1]),
    ] {
        // Before `check` sees it, the head is compared with the embedding.
        for head in ["lm_head.weight", "other.weight"] {
            let view = || tensor("0", &shape, &strides);
            let error = refusal(&torch_file(&state_dict(&[("wte.weight", view()), (head, view())])));
            assert!(error.contains("claims more than storage 0 holds"), "{error}");
        }
    }
    // No elements are none too many, whatever else is claimed.
    let error = refusal(&torch_file(&state_dict(&[("wte.weight", tensor("0", &[0, i64::MAX], &[i64::MAX, 1]))])));
    assert!(error.contains("`wte.weight` is [0, "), "{error}");
    let error = refusal(&torch_file(&state_dict(&[("wte.weight", tensor("0", &[1; 9], &[1; 9]))])));
    assert!(error.contains("unknown way"), "{error}");
}

#[test]
fn names_cost_no_more_than_their_length_however_often_they_are_given() {
    bound_memory();
    let long = "x".repeat(100_000);
    let pair = |number: u32| [&b"j"[..], &number.to_le_bytes()].concat();
    // One name of 100 KB and one tensor, given to 60,000 pairs.
    let head = [b"\x80\x02}", &text(&long)[..], b"q\x01", &tensor("0", &[2], &[1]), b"q\x0200("].concat();
    let many = [head, [pair(1), pair(2)].concat().repeat(60_000), b"u.".to_vec()].concat();
    let error = refusal(&torch_file(&many));
    assert!(error.contains("twice") && error.contains("xxx…"), "{error}");

    // A storage with a long key, or in a folder with a long name, that 20,000 tensors lie in.
    let names: Vec<u8> = (0..20_000).flat_map(|i| [text(&i.to_string()), b"h\x02".to_vec()].concat()).collect();
    let shared = |key: &str| {
        [b"\x80\x02}".to_vec(), tensor(key, &[2], &[1]), b"q\x020(".to_vec(), names.clone(), b"u.".to_vec()].concat()
    };
    assert!(refusal(&torch_file(&shared(&long))).contains("unknown way"));
    let folder = "f".repeat(60_000);
    let (pickle, storage) = (format!("{folder}/data.pkl"), format!("{folder}/data/0"));
    let error = refusal(&zip(&[(pickle.as_str(), &shared("0")[..]), (storage.as_str(), &[0; 16])]));
    assert!(error.contains("no tensor `wte.weight`"), "{error}");
    // More tensors than any model has.
    let names: Vec<u8> = (0..70_000).flat_map(|i| [text(&i.to_string()), b"h\x02".to_vec()].concat()).collect();
    let many = [b"\x80\x02}".to_vec(), tensor("0", &[2], &[1]), b"q\x020(".to_vec(), names, b"u.".to_vec()].concat();
    assert!(refusal(&torch_file(&many)).contains("65536 tensors"));

    // A message has the beginning of a name, and of that nothing that moves a cursor.
    for name in
        [format!("h.0.{long}"), format!("h.99.{long}"), format!("a.attn.c_q.weight{long}"), "h.0.\u{1b}[2J\n".into()]
    {
        let wte = || [("wte.weight", tensor("0", &[1, 2], &[2, 1])), (name.as_str(), tensor("0", &[2], &[1]))];
        refusal(&torch_file(&state_dict(&wte())));
    }
    refusal(&zip(&[("a/data.pkl", &state_dict(&[("a", tensor("\n\u{1b}[2J", &[2], &[1]))])[..])]));
    refusal(&pickle_file(&[b"c\x1b[2J\n", long.as_bytes(), b"\n."].concat()));
}

fn pickle_file(program: &[u8]) -> Vec<u8> {
    torch_file(&[b"\x80\x02", program].concat())
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn headers_of_safetensors_made_to_do_harm_are_refused() {
    bound_memory();
    let entry = |name: &str, shape: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let file = |entries: &[String], data| safetensors(&format!("{{{}}}", entries.join(",")), data);
    let long = "n".repeat(1 << 20);
    for (bytes, reason) in [
        // Longer than the file, or than any header.
        ([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "not a complete checkpoint"),
        ([&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(), "not a complete checkpoint"),
        // Data that overlap, leave gaps, or are not there.
        (file(&[entry("a", "[2]", 0, 8), entry("b", "[2]", 4, 12)], 12), "offset"),
        (file(&[entry("a", "[2]", 0, 8), entry("b", "[2]", 12, 20)], 20), "offset"),
        (file(&[entry("a", "[2]", 0, 8)], 4), "not a complete checkpoint"),
        (file(&[entry("a", "[2]", 0, 8)], 12), "not fully covered"),
        (file(&[entry("a", "[18446744073709551615,2]", 0, 8)], 8), "overflow"),
        (file(&[entry(&long, "[3]", 0, 8)], 8), "not a complete checkpoint"),
        (file(&[entry(&long, "[2]", 4, 12)], 12), "offset"),
        (file(&[entry("a", &format!("[{}]", vec!["1"; 100_000].join(",")), 0, 4)], 4), "100000 dimensions"),
        (
            safetensors(&format!(r#"{{"a":{{"dtype":"{long}","shape":[],"data_offsets":[0,4]}}}}"#), 4),
            "unknown variant",
        ),
        (safetensors(&format!(r#"{{"__metadata__":{{"a":"{long}"}}}}"#), 0), "no tensor `wte.weight`"),
        // One name twice is one tensor, which the file then is too long for.
        (file(&[entry("wte.weight", "[1,2]", 0, 8), entry("wte.weight", "[1,2]", 8, 16)], 16), "not a complete"),
        // No elements, and half elements.
        (file(&[entry("wte.weight", "[0,2]", 0, 0)], 0), "`wte.weight` is [0, 2]"),
        (file(&[entry("wte.weight", "[2,0]", 0, 0)], 0), "`wte.weight` is [2, 0]"),
        (file(&[entry("wte.weight", "[]", 0, 4)], 4), "`wte.weight` is []"),
        (file(&[entry("wte.weight", "[3]", 0, 2).replace("F32", "F4")], 2), "not a complete checkpoint"),
    ] {
        let error = refusal(&bytes);
        assert!(error.contains(reason), "{reason} in {error}");
    }
}

#[test]
fn a_configuration_of_more_layers_than_there_are_costs_nothing() {
    bound_memory();
    let shapes = [
        ("wte.weight", "[1,1]", 1),
        ("wpe.weight", "[1,1]", 1),
        ("ln_f.weight", "[1]", 1),
        ("h.0.ln_1.weight", "[1]", 1),
        ("h.0.attn.c_attn.weight", "[1,3]", 3),
        ("h.0.attn.c_proj.weight", "[1,1]", 1),
        ("h.0.ln_2.weight", "[1]", 1),
        ("h.0.mlp.c_fc.weight", "[1,4]", 4),
        ("h.0.mlp.c_proj.weight", "[4,1]", 4),
    ];
    let (mut entries, mut end) = (Vec::new(), 0);
    for (name, shape, count) in shapes {
        let start = end;
        end += 4 * count;
        entries.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#));
    }
    // Without biases: that no layer has them must not be asked of every layer.
    let bytes = safetensors(&format!("{{{}}}", entries.join(",")), end);
    let config = r#"{"n_layer":16777216,"n_head":1,"n_embd":1,"n_positions":1,"vocab_size":1}"#;
    let error = refusal_with(&bytes, config);
    assert!(error.contains("no tensor `h.1.ln_1.weight`"), "{error}");
}
