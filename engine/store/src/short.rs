//! Byte strings that take no allocation while they are short.
//!
//! Most keys and values are: a row of a small key and a small value then lives wholly in the map's node, and comparing
//! keys on the way down does not leave the node that is already in the processor's cache.

use std::borrow::Borrow;
use std::cmp::Ordering;

/// As many as fit beside the two length bytes in the three words that a boxed slice with its tag takes anyway.
const INLINE_BYTES_MAX: usize = 22;

const _: () = assert!(size_of::<Short>() == 3 * size_of::<usize>());

/// Some bytes. Those longer than [`INLINE_BYTES_MAX`] are on the heap, and no others: one value has one form.
#[derive(Clone)]
pub(crate) enum Short {
    Inline { len: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Heap(Box<[u8]>),
}

impl Short {
    pub(crate) fn new(from: &[u8]) -> Short {
        if !Short::is_inline(from.len()) {
            return Short::Heap(from.into());
        }
        let mut bytes = [0; INLINE_BYTES_MAX];
        bytes[..from.len()].copy_from_slice(from);
        Short::Inline { len: from.len() as u8, bytes }
    }

    /// Whether bytes of this length take no allocation.
    pub(crate) fn is_inline(length: usize) -> bool {
        length <= INLINE_BYTES_MAX
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Short::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Short::Heap(bytes) => bytes,
        }
    }

    /// Becomes these bytes. Allocates only if they are long, and of another length than before.
    pub(crate) fn set(&mut self, from: &[u8]) {
        match self {
            Short::Heap(bytes) if bytes.len() == from.len() => bytes.copy_from_slice(from),
            _ => *self = Short::new(from),
        }
    }
}

// Looked up by slice too, so everything below must be as slices have it.

impl Borrow<[u8]> for Short {
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for Short {
    fn eq(&self, other: &Short) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Short {}

impl PartialOrd for Short {
    fn partial_cmp(&self, other: &Short) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Short {
    fn cmp(&self, other: &Short) -> Ordering {
        match (self, other) {
            (Short::Inline { len, bytes }, Short::Inline { len: other_len, bytes: other_bytes }) => {
                words(bytes).cmp(&words(other_bytes)).then(len.cmp(other_len))
            }
            _ => self.as_slice().cmp(other.as_slice()),
        }
    }
}

/// Three words that compare as the bytes do: a map's descent is made of comparisons, and these need no call. What is
/// beyond the length is zero, so where two strings first differ and one has ended, the longer one is the greater; where
/// they do not differ at all, the length decides.
fn words(bytes: &[u8; INLINE_BYTES_MAX]) -> [u64; 3] {
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes of twenty-two"));
    // The last overlaps the second: by then those bytes are known to be equal.
    [word(0), word(8), word(INLINE_BYTES_MAX - 8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordered_as_slices_are() {
        let mut strings: Vec<Vec<u8>> = vec![Vec::new()];
        for length in [1, 7, 8, 9, 13, 14, 15, 16, 17, 21, 22, 23, 24] {
            for last in [0, 1, 255] {
                for rest in [0, 1, 255] {
                    let mut string = vec![rest; length];
                    string[length - 1] = last;
                    strings.push(string);
                }
            }
        }
        for one in &strings {
            for other in &strings {
                assert_eq!(Short::new(one).cmp(&Short::new(other)), one.cmp(other), "{one:?} {other:?}");
                assert_eq!(Short::new(one) == Short::new(other), one == other);
            }
        }
    }

    #[test]
    fn any_length_becomes_any_other() {
        for before in 0..60 {
            for after in 0..60 {
                let mut short = Short::new(&vec![1; before]);
                assert_eq!(short.as_slice(), vec![1; before]);
                let place = short.as_slice().as_ptr();
                short.set(&vec![2; after]);
                assert_eq!(short.as_slice(), vec![2; after]);
                if before == after {
                    assert_eq!(short.as_slice().as_ptr(), place, "the same length stays in place");
                }
            }
        }
    }
}
