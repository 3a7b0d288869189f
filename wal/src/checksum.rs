//! crc32c of two pieces put together, from those of each: a record that was summed once is not read again for its frame.
//!
//! crc32c(A B) is crc32c(A) times x^(8 |B|), modulo the polynomial, and then xor crc32c(B): a checksum's bits are a polynomial over
//! GF(2), the highest bit that of x^0. (Mark Adler's `crc32_combine`, zlib.)
//!
//! The crate's own `crc32c_combine` squares matrices for each call: 40 us, where reading 8 KiB again takes half of one. Here the powers
//! are in tables.

const POLYNOMIAL: u32 = 0x82f6_3b78;
const ONE: u32 = 1 << 31;
const TO_THE_8: u32 = ONE >> 8;

/// Longer pieces cannot be joined: a byte of the length selects from each table.
const JOINED_BYTES_LIMIT: usize = 1 << (8 * POWERS.len());

/// x^(8 n 256^i) in place n of table i.
static POWERS: [[u32; 256]; 3] = powers();

const fn powers() -> [[u32; 256]; 3] {
    let mut powers = [[ONE; 256]; 3];
    let mut factor = TO_THE_8;
    let mut i = 0;
    while i < powers.len() {
        let mut n = 1;
        while n < 256 {
            powers[i][n] = product(powers[i][n - 1], factor);
            n += 1;
        }
        factor = product(powers[i][255], factor);
        i += 1;
    }
    powers
}

/// The product of two polynomials, modulo the polynomial.
const fn product(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = ONE;
    while bit != 0 {
        // All ones, or zero: no branch that depends on what is random.
        product ^= b & ((a & bit != 0) as u32).wrapping_neg();
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        bit >>= 1;
    }
    product
}

/// The checksum of what has the checksum `front`, followed by `back_bytes` bytes that have the checksum `back`.
pub(crate) fn joined(front: u32, back: u32, back_bytes: usize) -> u32 {
    assert!(back_bytes < JOINED_BYTES_LIMIT, "no frame is as long");
    let [low, middle, high, ..] = back_bytes.to_le_bytes();
    let mut front = product(front, POWERS[0][usize::from(low)]);
    front = product(front, POWERS[1][usize::from(middle)]);
    if high != 0 {
        front = product(front, POWERS[2][usize::from(high)]);
    }
    front ^ back
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_is_the_checksum_of_both() {
        let bytes: Vec<u8> = (0..JOINED_BYTES_LIMIT + 100).map(|i| ((i * i) >> 7) as u8).collect();
        for back in [0, 1, 31, 255, 256, 257, 8188, 65_535, 65_536, 1_000_003, JOINED_BYTES_LIMIT - 1] {
            for front in [0, 1, 100] {
                let (a, b) = bytes[..front + back].split_at(front);
                let both = joined(crc32c::crc32c(a), crc32c::crc32c(b), back);
                assert_eq!(both, crc32c::crc32c(&bytes[..front + back]), "{front} bytes and {back}");
            }
        }
    }
}
