//! Bytes that are nearly right, and bytes that never were.

use fastrand::Rng;

/// Numbers at which something may turn over.
const EDGES: [u64; 14] =
    [0, 1, 2, 7, 8, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 62, u64::MAX >> 1, u64::MAX];
/// Made up from nothing: so many pieces at most.
const PIECES_MAX: usize = 24;
/// Spoiled in so many places at most.
const WOUNDS_MAX: usize = 4;
/// No input is longer, in bytes.
const INPUT_BYTES_MAX: usize = 1 << 20;

/// The next input.
pub(super) fn draw(random: &mut Rng, samples: &[Vec<u8>], into: &mut Vec<u8>) {
    into.clear();
    if samples.is_empty() || random.u8(..8) == 0 {
        for _ in 0..random.usize(..PIECES_MAX) {
            put_piece(random, into);
        }
        return;
    }
    into.extend_from_slice(&samples[random.usize(..samples.len())]);
    for _ in 0..random.usize(..=WOUNDS_MAX) {
        wound(random, samples, into);
    }
    into.truncate(INPUT_BYTES_MAX);
}

fn put_piece(random: &mut Rng, into: &mut Vec<u8>) {
    let number = match random.bool() {
        true => EDGES[random.usize(..EDGES.len())],
        false => random.u64(..64),
    };
    match random.u8(..5) {
        0 => into.push(number as u8),
        1 => into.extend_from_slice(&(number as u16).to_le_bytes()),
        2 => into.extend_from_slice(&(number as u32).to_le_bytes()),
        3 => into.extend_from_slice(&number.to_le_bytes()),
        _ => into.extend(std::iter::repeat_with(|| random.u8(..)).take(usize::from(number as u8 & 31))),
    }
}

/// Somewhere in these bytes: from, to.
fn stretch(random: &mut Rng, bytes: &[u8]) -> (usize, usize) {
    let from = random.usize(..=bytes.len());
    // Mostly short: a field, not half of the input.
    let most = if random.u8(..4) == 0 { bytes.len() - from } else { (bytes.len() - from).min(16) };
    (from, from + random.usize(..=most))
}

fn wound(random: &mut Rng, samples: &[Vec<u8>], bytes: &mut Vec<u8>) {
    let (from, to) = stretch(random, bytes);
    match random.u8(..8) {
        0 => bytes.truncate(from),
        1 => {
            bytes.drain(from..to);
        }
        2 => {
            let piece = bytes[from..to].to_vec();
            let at = random.usize(..=bytes.len());
            bytes.splice(at..at, piece);
        }
        3 => {
            let other = &samples[random.usize(..samples.len())];
            let (other_from, other_to) = stretch(random, other);
            bytes.splice(from..to, other[other_from..other_to].iter().copied());
        }
        4 => {
            let mut piece = Vec::new();
            put_piece(random, &mut piece);
            let end = (from + piece.len()).min(bytes.len());
            bytes.splice(from..end, piece);
        }
        5 => bytes[from..to].fill(0),
        6 => bytes[from..to].iter_mut().for_each(|byte| *byte = random.u8(..)),
        _ if from < bytes.len() => bytes[from] ^= 1 << random.u8(..8),
        _ => put_piece(random, bytes),
    }
}
