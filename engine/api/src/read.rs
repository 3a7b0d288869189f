//! Taking fields off bytes that nobody vouches for.
//!
//! Nothing here allocates: a length is compared with the bytes that are there before it is used, and what is returned
//! borrows from them.

use thiserror::Error;

/// Why bytes are not a command or an answer. Offsets count from their beginning.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    /// They end within a field.
    #[error("the bytes end at {length}, within the field that begins at {offset}")]
    Truncated {
        /// Where the field begins.
        offset: usize,
        /// How many bytes there are.
        length: usize,
    },
    /// They go on after the last field.
    #[error("the last field ends at byte {end}, but there are {length} bytes")]
    Trailing {
        /// Where the last field ends.
        end: usize,
        /// How many bytes there are.
        length: usize,
    },
    /// A byte that selects a variant selects none.
    #[error("the {what} at byte {offset} is {found}, which means nothing")]
    Unknown {
        /// What the byte should select.
        what: &'static str,
        /// Where it is.
        offset: usize,
        /// What it is.
        found: u8,
    },
    /// A text is not UTF-8.
    #[error("the text at byte {offset} is not UTF-8")]
    NotText {
        /// Where it begins.
        offset: usize,
    },
}

/// A place in bytes that are being decoded.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, offset: 0 }
    }

    /// Everything must have been taken: a longer encoding of the same command would be a second one.
    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.offset == self.bytes.len() {
            return Ok(());
        }
        Err(DecodeError::Trailing { end: self.offset, length: self.bytes.len() })
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.bytes[self.offset..];
        if count > rest.len() {
            return Err(DecodeError::Truncated { offset: self.offset, length: self.bytes.len() });
        }
        self.offset += count;
        Ok(&rest[..count])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let field = self.take(N)?;
        Ok(field.try_into().expect("take gives as many bytes as it is asked for"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Bytes after their length as a `u16`: keys, paths, texts.
    pub(crate) fn short(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = u16::from_le_bytes(self.array()?);
        self.take(usize::from(length))
    }

    /// Bytes after their length as a `u32`: values.
    pub(crate) fn long(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = u32::from_le_bytes(self.array()?);
        self.take(length as usize)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, DecodeError> {
        let offset = self.offset;
        std::str::from_utf8(self.short()?).map_err(|_| DecodeError::NotText { offset })
    }

    /// The byte before the current place selected no variant.
    pub(crate) fn unknown(&self, what: &'static str, found: u8) -> DecodeError {
        DecodeError::Unknown { what, offset: self.offset - 1, found }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    /// Bytes as golden text.
    pub(crate) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// And back.
    pub(crate) fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }
}
