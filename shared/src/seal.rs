//! What two processes that have met keep from whoever is between them: AES-256-GCM under keys of their Noise handshake.
//!
//! ```text
//! sealed     [frame of up to 65519 bytes, tag of 16][frame, tag] …     the last one is as long as what is left
//! ```
//! Frames are numbered in each direction, so that one which is changed, left out, repeated or exchanged does not open.
//! Does not know what is sealed, nor what it goes over.

use std::sync::Arc;

use snow::StatelessTransportState;

/// Bytes that a frame holds at most: with its tag it is the longest message of Noise.
const FRAME_BYTES: usize = 65_535 - TAG_BYTES;
const TAG_BYTES: usize = 16;

/// Something between the two has changed what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what came is not what was sent: it does not open with the keys of this link")]
pub struct Broken;

/// Both directions of one end.
#[derive(Debug)]
pub struct Seal {
    /// For what goes out.
    pub sealer: Sealer,
    /// For what comes in.
    pub opener: Opener,
}

/// Seals what goes out.
#[derive(Debug)]
pub struct Sealer {
    state: Arc<StatelessTransportState>,
    next: u64,
}

/// Opens what comes in.
#[derive(Debug)]
pub struct Opener {
    state: Arc<StatelessTransportState>,
    next: u64,
    /// A frame with its tag.
    scratch: Vec<u8>,
}

impl Seal {
    /// With the keys of a handshake that is done.
    pub(crate) fn new(state: StatelessTransportState) -> Self {
        let state = Arc::new(state);
        let opener = Opener { state: state.clone(), next: 0, scratch: Vec::new() };
        Self { sealer: Sealer { state, next: 0 }, opener }
    }
}

impl Sealer {
    /// Appends `plain`, sealed, to `out`.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        for frame in plain.chunks(FRAME_BYTES) {
            let start = out.len();
            out.resize(start + frame.len() + TAG_BYTES, 0);
            let written = self.state.write_message(self.next, frame, &mut out[start..]);
            written.expect("a frame with its tag fits a message of Noise");
            self.next += 1;
        }
    }
}

impl Opener {
    /// Opens what is as long as `plain` sealed.
    ///
    /// # Errors
    /// When it is not what the other end sealed next.
    pub fn open(&mut self, sealed: &[u8], plain: &mut [u8]) -> Result<(), Broken> {
        assert_eq!(sealed.len(), sealed_bytes(plain.len()), "it is known how much is sealed");
        for (sealed, plain) in sealed.chunks(FRAME_BYTES + TAG_BYTES).zip(plain.chunks_mut(FRAME_BYTES)) {
            // Opened where there is room for the tag too.
            self.scratch.resize(sealed.len(), 0);
            self.state.read_message(self.next, sealed, &mut self.scratch).map_err(|_| Broken)?;
            plain.copy_from_slice(&self.scratch[..plain.len()]);
            self.next += 1;
        }
        Ok(())
    }
}

/// How long so many bytes are when they are sealed.
pub fn sealed_bytes(plain: usize) -> usize {
    plain + plain.div_ceil(FRAME_BYTES) * TAG_BYTES
}

/// How many bytes are sealed in so many; none where that cannot be.
pub fn plain_bytes(sealed: usize) -> Option<usize> {
    let plain = sealed.checked_sub(sealed.div_ceil(FRAME_BYTES + TAG_BYTES) * TAG_BYTES)?;
    (sealed_bytes(plain) == sealed).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::tests::ends;

    #[test]
    fn what_is_sealed_opens_once_in_its_order_and_unchanged() {
        let (mut near, mut far) = ends();
        for len in [1, 16, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES] {
            let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut sealed = Vec::new();
            near.sealer.seal(&plain, &mut sealed);
            assert_eq!((sealed.len(), plain_bytes(sealed.len())), (sealed_bytes(len), Some(len)));
            let mut opened = vec![0; len];
            far.opener.open(&sealed, &mut opened).unwrap();
            assert!(opened == plain && !sealed.windows(16).any(|bytes| plain.len() > 16 && bytes == &plain[..16]));
            // Said again.
            assert_eq!(far.opener.open(&sealed, &mut opened), Err(Broken));
        }
        let (mut near, mut far) = ends();
        let mut sealed = Vec::new();
        near.sealer.seal(b"some words", &mut sealed);
        sealed[3] ^= 1;
        assert_eq!(far.opener.open(&sealed, &mut [0; 10]), Err(Broken));
        // Sent back to where it came from.
        sealed[3] ^= 1;
        assert_eq!(near.opener.open(&sealed, &mut [0; 10]), Err(Broken));
        assert_eq!([0, 1, 16, 17, FRAME_BYTES + 17].map(plain_bytes), [Some(0), None, None, Some(1), None]);
    }
}
