//! Names of a picker's objects: unique, stable, and within what Kubernetes takes, whatever the pool is called.

use std::fmt::Write as _;

use pool::PoolId;
use sha2::{Digest, Sha256};

/// The longest name of a Service, and the longest label value.
const LONGEST: usize = 63;
/// Hex digits of the hash that tells apart what is cut: 48 bits.
const HASH_DIGITS: usize = 12;
const PREFIX: &str = "epp-";

/// The name of every object of the pool's picker: `epp-<pool>-<hash>`, where the hash is that of namespace and name.
#[must_use]
pub fn picker(id: &PoolId) -> String {
    let room = LONGEST - PREFIX.len() - 1 - HASH_DIGITS;
    // A Service's name has no dots, an InferencePool's may.
    let readable = id.name.replace('.', "-");
    let readable = cut(&readable, room).trim_end_matches('-');
    format!("{PREFIX}{readable}-{}", hash(&format!("{}/{}", id.namespace, id.name)))
}

/// The text as a label value: itself where that is possible, else its beginning and the hash of the whole.
#[must_use]
pub fn label(text: &str) -> String {
    if text.len() <= LONGEST && !looks_cut(text) {
        return text.to_owned();
    }
    format!("{}-{}", cut(text, LONGEST - 1 - HASH_DIGITS), hash(text))
}

/// Whether it could be what another text was cut to.
fn looks_cut(text: &str) -> bool {
    let hash = text.len() == LONGEST && text.is_ascii();
    hash && text[LONGEST - HASH_DIGITS - 1..].strip_prefix('-').is_some_and(|hash| {
        hash.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
    })
}

/// The name of the Event of that fact about the object: the same fact has the same name.
pub(crate) fn event(object: &str, fact: &str) -> String {
    format!("{}.{}", cut(object, 200), hash(fact))
}

/// A short digest of a text.
pub(crate) fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let mut digits = digest.iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    digits.truncate(HASH_DIGITS);
    digits
}

fn cut(text: &str, bytes_max: usize) -> &str {
    // Names of Kubernetes' objects are ASCII.
    text.get(..bytes_max).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn name(namespace: &str, pool: &str) -> String {
        picker(&PoolId::new(namespace, pool))
    }

    #[test]
    fn names_are_stable() {
        // Changed, they would leave every picker of an installation behind.
        assert_eq!(name("default", "qwen-pool"), "epp-qwen-pool-0cc0dc07217c");
        assert_eq!(label("qwen-pool"), "qwen-pool");
    }

    #[test]
    fn a_name_that_looks_like_a_cut_one_is_not_its() {
        let long = "a".repeat(70);
        let (cut, its_twin) = (label(&long), label(&label(&long)));
        assert_eq!((cut.len(), its_twin.len()), (63, 63));
        assert_ne!(cut, its_twin);
        assert_eq!(label(&"a".repeat(63)), "a".repeat(63));
    }

    #[test]
    fn what_could_collide_does_not() {
        let long = "a".repeat(253);
        let longer = format!("{}b", "a".repeat(252));
        let pools = [
            ("a", "b-c"),
            ("a-b", "c"),
            ("a", "b.c"),
            ("default", "pool"),
            ("other", "pool"),
            ("default", &long),
            ("default", &longer),
        ];
        let names: HashSet<_> = pools.iter().map(|(namespace, pool)| name(namespace, pool)).collect();
        assert_eq!(names.len(), pools.len());
        assert_ne!(label(&long), label(&longer));
    }

    #[test]
    fn they_are_what_a_service_and_a_label_may_be_called() {
        let dots = format!("{}.{}", "x".repeat(45), "y".repeat(100));
        for pool in ["p", "0", "a.b.c", "qwen-pool", &"a".repeat(253), &dots] {
            let name = name("namespace", pool);
            assert!(name.len() <= LONGEST, "{name}");
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            );
            assert!(!name.contains("--"), "{name}");
            let label = label(pool);
            assert!(
                label.len() <= LONGEST && label.ends_with(|last: char| last.is_ascii_alphanumeric()),
                "{label}"
            );
        }
    }
}
