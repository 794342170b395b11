//! What a rank's own memory is while it loads: its share and one tensor, whatever the format.
//!
//! One test, so that nothing else of this process allocates while it measures.

#[path = "../../tests/zip.rs"]
mod zip;

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use nanoinfer_checkpoint::{Checkpoint, Layout};
use nanoinfer_shared::{ModelShape, Partition, protocol::DType};
use nanoinfer_worker::{Level, cpu::load::Shard};

use crate::zip::zip;

/// 28 MB in f32, of which one of four ranks holds a quarter and the positions.
const CONFIG: &str = r#"{"n_layer":6,"n_head":4,"n_embd":256,"vocab_size":8192,"n_positions":64}"#;
/// Buffers of the program itself: names, headers, the allocator's own.
const SLACK_BYTES: u64 = 2 << 20;

/// Anonymous resident bytes of this process.
fn anonymous_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB")).unwrap();
    line.trim().parse::<u64>().unwrap() << 10
}

/// Names and shapes, as `[out, in]` for the Linear layout.
fn tensors(model_shape: &ModelShape, layout: Layout) -> Vec<(String, Vec<usize>)> {
    let (c, f) = (model_shape.width, model_shape.mlp.inner);
    let matrix = |input, output| if layout == Layout::Linear { vec![output, input] } else { vec![input, output] };
    let mut tensors = vec![("wte.weight".to_owned(), vec![model_shape.vocab_size, c])];
    tensors.push(("wpe.weight".into(), vec![model_shape.context, c]));
    for layer in 0..model_shape.layers {
        for (name, shape) in [
            ("ln_1.weight", vec![c]),
            ("attn.c_attn.weight", matrix(c, 3 * c)),
            ("attn.c_proj.weight", matrix(c, c)),
            ("ln_2.weight", vec![c]),
            ("mlp.c_fc.weight", matrix(c, f)),
            ("mlp.c_proj.weight", matrix(f, c)),
        ] {
            tensors.push((format!("h.{layer}.{name}"), shape));
        }
    }
    tensors.push(("ln_f.weight".into(), vec![c]));
    tensors
}

fn write_floats(file: &mut impl Write, count: usize) {
    let values: Vec<u8> = (0..1024u32).flat_map(|i| (i as f32 * 1e-4).to_le_bytes()).collect();
    let mut left = count * 4;
    while left > 0 {
        let chunk = left.min(values.len());
        file.write_all(&values[..chunk]).unwrap();
        left -= chunk;
    }
}

fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let mut end = 0;
    let mut entries = Vec::new();
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 4;
        entries.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    write_floats(&mut file, end / 4);
    file.flush().unwrap();
}

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn pickled_text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The pickle of a state dict whose every tensor is a storage of its own. `view` ends a storage's description.
fn pickled_tensors(tensors: &[(String, Vec<usize>)], view: &[u8]) -> Vec<u8> {
    let (text, int) = (pickled_text, |n: usize| [b"J", &(n as u32).to_le_bytes()[..]].concat());
    let tuple = |items: &[usize]| [vec![b'('], items.iter().flat_map(|&n| int(n)).collect(), vec![b't']].concat();
    let mut object = b"\x80\x02}(".to_vec();
    for (key, (name, shape)) in tensors.iter().enumerate() {
        let strides = if let &[_, columns] = &shape[..] { vec![columns, 1] } else { vec![1] };
        object.extend(text(name));
        object.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        object.extend(
            [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&key.to_string()), text("cpu")].concat(),
        );
        object.extend([int(count(shape)), view.to_vec(), b"tQ".to_vec(), int(0), tuple(shape)].concat());
        object.extend([tuple(&strides), b"\x89NtR".to_vec()].concat());
    }
    object.extend(b"u.");
    object
}

/// As torch before 1.6 wrote it.
fn write_legacy(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let text = pickled_text;
    let keys: Vec<u8> = (0..tensors.len()).flat_map(|key| text(&key.to_string())).collect();
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}").unwrap();
    let object = pickled_tensors(tensors, b"N");
    let keys = [b"\x80\x02](", &keys[..], b"e."].concat();
    file.write_all(&[text("little_endian"), b"\x88s.".to_vec(), object, keys].concat()).unwrap();
    for (_, shape) in tensors {
        file.write_all(&(count(shape) as u64).to_le_bytes()).unwrap();
        write_floats(&mut file, count(shape));
    }
    file.flush().unwrap();
}

/// As torch writes it since.
fn write_zip(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let object = pickled_tensors(tensors, b"");
    let storages: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| {
            let mut storage = Vec::new();
            write_floats(&mut storage, count(shape));
            storage
        })
        .collect();
    let data = (0..).zip(&storages).map(|(key, storage)| (format!("archive/data/{key}"), &storage[..]));
    let entries: Vec<_> = [("archive/data.pkl".to_owned(), &object[..])].into_iter().chain(data).collect();
    fs::write(path, zip(&entries)).unwrap();
}

#[test]
fn loading_takes_a_share_and_at_most_one_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let model_shape = ModelShape::from_config_json(CONFIG).unwrap();
    let partition = Partition::new(&model_shape, 4).unwrap();
    let largest = (model_shape.vocab_size * model_shape.width * 4) as u64;
    for (layout, write) in [
        (Layout::Conv1d, write_safetensors as fn(&Path, &[(String, Vec<usize>)])),
        (Layout::Conv1d, write_zip),
        (Layout::Conv1d, write_legacy),
        (Layout::Linear, write_legacy),
    ] {
        let path: PathBuf = dir.path().join("weights");
        write(&path, &tensors(&model_shape, layout));
        let file_bytes = fs::metadata(&path).unwrap().len();
        for dtype in [DType::F32, DType::Bf16, DType::Int8] {
            let share = partition.share(1);
            let share_bytes = Shard::bytes(&model_shape, share, dtype).all;
            let before = anonymous_bytes();
            let loaded = AtomicBool::new(false);
            let peak = std::thread::scope(|scope| {
                let watch = scope.spawn(|| {
                    let mut peak = 0;
                    while !loaded.load(SeqCst) {
                        peak = anonymous_bytes().max(peak);
                    }
                    peak
                });
                let checkpoint = Checkpoint::open(std::slice::from_ref(&path)).unwrap();
                assert_eq!(checkpoint.layout(), layout);
                let model_shape = checkpoint.refine(model_shape.clone());
                checkpoint.check(&model_shape).unwrap();
                let shard =
                    Shard::load(&checkpoint, &model_shape, share, dtype, &Level::choose(None).unwrap(), 1).unwrap();
                loaded.store(true, SeqCst);
                let peak: u64 = watch.join().unwrap();
                let after = anonymous_bytes();
                drop(shard);
                peak.max(after)
            });
            let own = peak - before;
            println!(
                "{:?} {layout:?} {dtype:?}: {own} B at most, share {share_bytes} B, largest tensor {largest} B, file {file_bytes} B",
                checkpoint_format(&path)
            );
            assert!(own <= share_bytes + largest + SLACK_BYTES, "{own} B while loading a share of {share_bytes} B");
            // Else the bound above would hold for one that reads the file whole.
            assert!(share_bytes + largest + SLACK_BYTES < file_bytes);
        }
    }
}

fn checkpoint_format(path: &Path) -> nanoinfer_checkpoint::Format {
    Checkpoint::open(&[path.to_path_buf()]).unwrap().format()
}
