//! Settings and durations: what is accepted, by slow readings of the contract, and what then is in force.

use std::sync::Arc;
use std::time::Duration;

use pool::{Annotations, Origin, PoolPolicy, Setting, parse_duration};

/// A valid value of each setting that is not its default, and what is valid.
const SETTINGS: [(&str, &str, Valid); 13] = [
    ("routing-strategy", "PREFIX_CACHE", Valid::Words(&["DEFAULT", "PREFIX_CACHE"])),
    ("prefix-cache-hash-block-size", "16", Valid::Whole(65_536)),
    ("prefix-cache-max-prefix-blocks", "7", Valid::Whole(65_536)),
    ("prefix-cache-lru-capacity", "9", Valid::Whole(10_000_000)),
    ("queueing", "enabled", Valid::Words(&["disabled", "enabled"])),
    ("total-queue-capacity", "11", Valid::Whole(1 << 40)),
    ("queue-ttl", "1h30m", Valid::Ttl),
    ("model-server-runtime", "sglang", Valid::Words(&["vllm", "sglang", "trt-llm"])),
    ("model-server-metrics-scheme", "https", Valid::Words(&["http", "https"])),
    ("model-server-metrics-port", "99", Valid::Whole(65_535)),
    ("model-server-metrics-path", "/m?a=b", Valid::Path),
    ("model-server-metrics-https-insecure-skip-verify", "false", Valid::Words(&["true", "false"])),
    ("epp-overlay", "custom", Valid::Name),
];

#[derive(Clone, Copy)]
enum Valid {
    Words(&'static [&'static str]),
    /// From 1.
    Whole(u128),
    Ttl,
    Path,
    Name,
}

/// Reads `text` as a duration, against the grammar of Go's `time.ParseDuration` in exact numbers.
pub(crate) fn check_duration(text: &str) {
    let ours = parse_duration(text);
    let Some(Exact { negative, nanos, terms }) = exact(text) else {
        assert!(ours.is_err(), "{text:?} is no duration, but {ours:?}");
        return;
    };
    // Go computes fractions in floating point: each may be a nanosecond off.
    let (limit, near) = (i64::MAX as u128, u128::from(terms));
    match ours {
        Ok(ours) => {
            assert!(!negative || nanos <= near, "{text:?} is below zero, but {ours:?}");
            assert!(ours.as_nanos().abs_diff(nanos) <= near, "{text:?} is {nanos} ns, but {ours:?}");
        }
        Err(error) => assert!(negative || nanos + near > limit, "{text:?} is {nanos} ns, but {error}"),
    }
}

struct Exact {
    negative: bool,
    /// Rounded down, term by term; saturates far beyond what counts.
    nanos: u128,
    terms: u32,
}

fn exact(text: &str) -> Option<Exact> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let mut exact = Exact { negative: text.starts_with('-'), nanos: 0, terms: 0 };
    if unsigned == "0" {
        return Some(exact);
    }
    let mut rest = unsigned;
    while !rest.is_empty() {
        let whole = digits(&mut rest);
        let fraction = rest.strip_prefix('.').map(|after| {
            rest = after;
            digits(&mut rest)
        });
        let fraction = fraction.unwrap_or_default();
        if whole.len() + fraction.len() == 0 {
            return None;
        }
        // `ms` before `m`.
        let units: [(&str, u128); 8] = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let (unit, nanos) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        let whole = whole.trim_start_matches('0');
        let whole = if whole.len() > 20 { u128::from(u64::MAX) } else { whole.parse().unwrap_or(0) };
        let fraction = &fraction[..fraction.len().min(20)];
        let part = fraction.parse().unwrap_or(0_u128) * nanos / 10_u128.pow(fraction.len() as u32);
        exact.nanos = exact.nanos.saturating_add(whole * nanos + part);
        exact.terms += 1;
    }
    (exact.terms > 0).then_some(exact)
}

fn digits<'t>(rest: &mut &'t str) -> &'t str {
    let end = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, after) = rest.split_at(end);
    *rest = after;
    digits
}

/// Puts `text` in force as the value of one setting.
pub(crate) fn check_setting(index: usize, text: &str) {
    let (name, sample, valid) = SETTINGS[index % SETTINGS.len()];
    let key = key_of(name);
    let default = PoolPolicy::default();
    let resolved = resolve(&key, text, None);
    let is_valid = valid.takes(text.trim());
    let (origin, faults) = if is_valid { (Origin::Annotation, 0) } else { (Origin::Default, 1) };
    assert_eq!(resolved.faults.len(), faults, "{name}: {text:?}");
    let shown = shown(&resolved.settings, &key);
    assert_eq!(shown.origin, origin);

    if is_valid {
        // What is shown may be written, and means the same.
        let again = resolve(&key, &shown.value, None);
        assert_eq!(
            (again.policy, again.faults.len()),
            (resolved.policy, 0),
            "{text:?} shows as {:?}",
            shown.value
        );
    } else {
        assert_eq!(resolved.policy, default);
        let last = resolve(&key, sample, None).policy;
        assert_ne!(last, default, "{name} in force");
        let kept = resolve(&key, text, Some(&last));
        assert_eq!(kept.policy, last, "the last valid value stays");
        assert_eq!(self::shown(&kept.settings, &key).origin, Origin::LastValid);
    }
}

/// The whole key of the setting called `name`.
fn key_of(name: &str) -> String {
    let settings = PoolPolicy::resolve(&Annotations::default(), None).settings;
    let named =
        settings.iter().find(|setting| setting.key.split_once('/').is_some_and(|(_, last)| last == name));
    named.expect("the setting is known").key.to_owned()
}

fn resolve(key: &str, text: &str, last: Option<&PoolPolicy>) -> pool::Resolved {
    PoolPolicy::resolve(&Annotations::from_pairs(&Arc::from("f"), [(key, text)]), last)
}

fn shown<'s>(settings: &'s [Setting], key: &str) -> &'s Setting {
    settings.iter().find(|setting| setting.key == key).expect("every setting is shown")
}

impl Valid {
    fn takes(self, text: &str) -> bool {
        match self {
            Self::Words(words) => words.contains(&text),
            Self::Whole(max) => {
                let digits = text.strip_prefix('+').unwrap_or(text);
                let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                let digits = digits.trim_start_matches('0');
                is_number && digits.len() < 20 && (1..=max).contains(&digits.parse().unwrap_or(0))
            }
            // Held to the grammar above.
            Self::Ttl => parse_duration(text).is_ok_and(|ttl| ttl > Duration::ZERO),
            Self::Path => text.strip_prefix('/').is_some_and(|rest| {
                rest.chars().all(|char| char.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/%?".contains(char))
            }),
            Self::Name => {
                let is_end = |byte: Option<u8>| {
                    byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                };
                let is_label = |label: &str| {
                    is_end(label.bytes().next())
                        && is_end(label.bytes().last())
                        && label.bytes().all(|byte| byte == b'-' || is_end(Some(byte)))
                };
                text.len() <= 253 && text.split('.').all(is_label)
            }
        }
    }
}
