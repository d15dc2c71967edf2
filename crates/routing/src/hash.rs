//! A prompt as a chain of block hashes.
//!
//! Invariant: hash `i` stands for the *whole* prompt up to the end of block `i`, because each block is hashed
//! under the hash of the one before it. Two prompts whose hash `i` is equal therefore share all blocks up to
//! there (but for chance, 2^-64 a comparison). The prefix index rests on this.

use pool::PrefixCachePolicy;
use twox_hash::XxHash3_64;

/// Cuts `prompt` (bytes of UTF-8) into blocks as `policy` says and writes one chained hash a block to `out`,
/// which is emptied first. A tail shorter than a block is ignored, and so is all that follows the policy's
/// largest number of blocks.
///
/// `seed` keeps apart what must not match: pass a hash of the model's name where one engine serves several.
/// Hashes of different block sizes never meet either.
pub fn block_hashes(prompt: &[u8], seed: u64, policy: &PrefixCachePolicy, out: &mut Vec<u64>) {
    out.clear();
    let block_bytes = policy.block_size_bytes as usize;
    let blocks_max = policy.prefix_blocks_max as usize;
    let mut chain = XxHash3_64::oneshot_with_seed(seed, &policy.block_size_bytes.to_le_bytes());
    out.extend(prompt.chunks_exact(block_bytes.max(1)).take(blocks_max).map(|block| {
        chain = XxHash3_64::oneshot_with_seed(chain, block);
        chain
    }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashes(prompt: &[u8], seed: u64, block_size_bytes: u32, prefix_blocks_max: u32) -> Vec<u64> {
        let policy =
            PrefixCachePolicy { block_size_bytes, prefix_blocks_max, ..PrefixCachePolicy::default() };
        let mut hashes = vec![1, 2, 3];
        block_hashes(prompt, seed, &policy, &mut hashes);
        hashes
    }

    #[test]
    fn a_tail_shorter_than_a_block_and_blocks_past_the_limit_are_ignored() {
        assert!(hashes(&[7; 63], 0, 64, 128).is_empty());
        assert_eq!(hashes(&[7; 64], 0, 64, 128).len(), 1);
        assert_eq!(hashes(&[7; 200], 0, 64, 128).len(), 3);
        assert_eq!(hashes(&[7; 200], 0, 64, 2), hashes(&[7; 128], 0, 64, 128));
        assert_eq!(hashes(&[7; 65536], 0, 65536, 1).len(), 1);
    }

    #[test]
    fn seeds_and_block_sizes_keep_prompts_apart() {
        let usual = hashes(&[7; 256], 0, 64, 128);
        let other = [hashes(&[7; 256], 1, 64, 128), hashes(&[7; 256], 0, 32, 128)];
        assert!(other.iter().flatten().all(|hash| !usual.contains(hash)));
    }

    proptest! {
        #[test]
        fn as_many_leading_hashes_are_equal_as_leading_blocks_are(
            one in prop::collection::vec(0..2_u8, 0..40),
            other in prop::collection::vec(0..2_u8, 0..40),
        ) {
            let shared_bytes = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
            let (one, other) = (hashes(&one, 9, 4, 128), hashes(&other, 9, 4, 128));
            let shared = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
            prop_assert_eq!(shared, shared_bytes / 4);
            prop_assert!(one[shared..].iter().all(|hash| !other.contains(hash)), "nor do they meet again");
        }
    }
}
