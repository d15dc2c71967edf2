//! The shapes of names that Kubernetes allows.

/// RFC 1123 subdomain: most objects' names.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| is_alphanumeric_at_ends(label) && label.bytes().all(is_lower_or_dash))
}

/// RFC 1123 label: namespaces.
pub(crate) fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && !text.contains('.') && is_dns_subdomain(text)
}

/// A label's key: a name of at most 63 characters, with or without a subdomain before it.
pub(crate) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    prefix.is_none_or(is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

/// A label's value: empty, or at most 63 characters that begin and end with a letter or digit.
pub(crate) fn is_label_value(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.is_empty() || (text.len() <= 63 && is_alphanumeric_at_ends(text) && text.bytes().all(inner))
}

fn is_lower_or_dash(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

/// False for an empty text.
fn is_alphanumeric_at_ends(text: &str) -> bool {
    let ends = [text.bytes().next(), text.bytes().last()];
    ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_kubernetes_judges_them() {
        let long = "a".repeat(64);
        for (text, subdomain, label, key, value) in [
            ("a", true, true, true, true),
            ("a-b", true, true, true, true),
            ("a.b", true, false, true, true),
            ("a..b", false, false, true, true),
            ("-a", false, false, false, false),
            ("A_b", false, false, true, true),
            ("", false, false, false, true),
            ("a/b", false, false, true, false),
            ("A/b", false, false, false, false),
            ("a/", false, false, false, false),
            ("a/b/c", false, false, false, false),
            ("é", false, false, false, false),
            (&long, true, false, false, false),
        ] {
            let judged =
                (is_dns_subdomain(text), is_dns_label(text), is_label_key(text), is_label_value(text));
            assert_eq!(judged, (subdomain, label, key, value), "{text:?}");
        }
    }
}
