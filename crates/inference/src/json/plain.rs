//! How far a string goes on without anything that needs a closer look, many bytes at a time.

use memchr::memchr2;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// How many bytes pass before the first that is no plain ASCII: a quote, backslash, control character or a part of
/// a longer character.
pub(super) fn ascii_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    // No early exit inside a block: the compiler turns each into a few vector instructions.
    for block in bytes.chunks_exact(32) {
        if block.iter().fold(false, |any, &byte| any | !is_plain_ascii(byte)) {
            break;
        }
        len += 32;
    }
    for word in bytes[len..].chunks_exact(8) {
        let special = special_bytes(u64::from_le_bytes([
            word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
        ]));
        if special != 0 {
            return len + special.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    len + bytes[len..].iter().take_while(|&&byte| is_plain_ascii(byte)).count()
}

/// How many bytes pass before the first quote, backslash or control character.
pub(super) fn any_len(bytes: &[u8]) -> usize {
    let len = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
    bytes[..len].iter().position(|&byte| byte < 0x20).unwrap_or(len)
}

fn is_plain_ascii(byte: u8) -> bool {
    // As signed numbers all of the upper half are below the space.
    (byte as i8 >= 0x20) & (byte != b'"') & (byte != b'\\')
}

/// The high bit of the first byte that is no plain ASCII; bits above it mean nothing. (Classic: a byte borrows
/// from its upper neighbour only if it is itself below what is subtracted.)
fn special_bytes(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let equal = (quote.wrapping_sub(ONES) & !quote) | (backslash.wrapping_sub(ONES) & !backslash);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (equal | control | word) & HIGH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_told_at_every_place() {
        for byte in 0..=255 {
            let plain = matches!(byte, 0x20..0x80) && byte != b'"' && byte != b'\\';
            for len in [1, 7, 8, 9, 31, 32, 33, 40, 47, 71] {
                for at in 0..len {
                    for after in [b'x', 0x1F, 0x21, 0x80, b'"', b'#'] {
                        let mut bytes = vec![b'x'; len];
                        bytes[at] = byte;
                        bytes[at + 1..].fill(after);
                        let tail_is_plain = matches!(after, b'x' | 0x21 | b'#');
                        let wanted = match (plain, tail_is_plain) {
                            (false, _) => at,
                            (true, false) => at + 1,
                            (true, true) => len,
                        };
                        assert_eq!(ascii_len(&bytes), wanted, "{byte} at {at} of {len}, then {after}");
                    }
                }
            }
        }
    }
}
