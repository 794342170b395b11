//! What tells one checkpoint from another without reading all of it.
//!
//! SHA-256 over names, types and shapes of all tensors, and over samples of their values: of a matrix [`PIECES`] pieces, evenly
//! spaced from its first element to its last; vectors whole. Ranks whose checkpoints differ in it must not compute together. It
//! is *sampled*: a training step changes every tensor, a merged adapter whole matrices, and either is seen; a file that differs
//! in a few elements only need not be. The same weights in a file of another format have the same fingerprint.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::{Checkpoint, tensor::Stored};

/// Pieces of a tensor that are looked at.
const PIECES: usize = 16;
/// Elements of a piece: a cache line of two-byte types.
const PIECE: usize = 32;
/// Longest vector that is taken whole. The longest of gpt2-xl has 6,400.
const WHOLE: usize = 1 << 14;

impl Checkpoint {
    /// The first 64 bits of the digest. Costs a read of a page for each piece: some 2,500 for GPT-2, 10,000 for gpt2-xl.
    pub fn fingerprint(&self) -> u64 {
        // All are asked for before the first is waited for: a disk answers many at once in hardly more time than one.
        for stored in self.sampled() {
            for piece in pieces(stored) {
                let bytes = stored.dtype.bytes(stored.place(piece.start), piece.len());
                self.files[stored.file].will_need(stored.start + bytes.start, bytes.len());
            }
        }
        let mut digest = Sha256::new();
        for (name, stored) in &self.tensors {
            digest.update(format!("{name} {} {:?}\n", stored.dtype, stored.shape));
        }
        self.samples().for_each(|(file, bytes)| digest.update(&self.files[file][bytes]));
        first_64_bits(digest)
    }

    /// Which file each sample of values lies in, and where.
    pub(super) fn samples(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        self.sampled().flat_map(|stored| {
            let places = pieces(stored).flatten().map(move |index| stored.dtype.bytes(stored.place(index), 1));
            // A block is taken once, by the first of its elements in a piece.
            let mut last = None;
            let places = places.filter(move |place| last.replace(place.clone()) != Some(place.clone()));
            places.map(move |place| (stored.file, stored.start + place.start..stored.start + place.end))
        })
    }

    fn sampled(&self) -> impl Iterator<Item = &Stored> {
        self.tensors.values().filter(|stored| stored.dtype.is_float() && stored.count() > 0)
    }

    /// A digest of which files were opened, so that others of the same names, or the same written to, are told from them. Says
    /// nothing to another host.
    pub fn identity(&self) -> u64 {
        let mut digest = Sha256::new();
        let words = self.files.iter().flat_map(|file| file.identity);
        words.for_each(|word| digest.update(word.to_le_bytes()));
        first_64_bits(digest)
    }
}

fn first_64_bits(digest: Sha256) -> u64 {
    let digest: [u8; 32] = digest.finalize().into();
    u64::from_be_bytes(*digest.first_chunk().expect("32 bytes are more than 8"))
}

/// Ranges of elements, in the order of the shape.
fn pieces(stored: &Stored) -> impl Iterator<Item = Range<usize>> + use<> {
    let count = stored.count();
    let is_whole = count <= PIECES * PIECE || (stored.shape.len() == 1 && count <= WHOLE);
    let (number, len) = if is_whole { (1, count) } else { (PIECES, PIECE) };
    (0..number).map(move |i| {
        let start = if i == 0 { 0 } else { (count - len) / (number - 1) * i };
        // The last ends where the tensor does.
        let start = if i + 1 == number { count - len } else { start };
        start..start + len
    })
}
