//! Prometheus text as Python's client library writes it.

use std::fmt::Write;

use crate::engine::Histogram;

/// A page being written.
#[derive(Debug)]
pub(super) struct Page {
    text: String,
    /// Printed in place of every value.
    instead: Option<&'static str>,
}

/// Names and values, in the order in which they are printed.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    /// An empty page.
    pub(super) fn new(instead: Option<&'static str>) -> Self {
        Self { text: String::with_capacity(64 * 1024), instead }
    }

    /// What has been written.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    /// The two lines that begin a family.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One sample with a value as Python writes floating point numbers.
    pub(super) fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.write_sample(name, labels, &number(value));
    }

    /// One sample with a whole number, as C++ writes it.
    pub(super) fn whole(&mut self, name: &str, labels: Labels<'_>, value: u64) {
        self.write_sample(name, labels, &value.to_string());
    }

    /// A gauge with one series.
    pub(super) fn gauge(&mut self, name: &str, help: &str, labels: Labels<'_>, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, labels, value);
    }

    /// Buckets, count and sum of a histogram whose family has begun. `le` takes its place among the sorted labels.
    pub(super) fn buckets(&mut self, name: &str, labels: Labels<'_>, histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut cumulative = 0;
        let bounds = histogram.bounds.iter().copied().chain([f64::INFINITY]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            cumulative += count;
            let bound = number(bound);
            let at = labels.partition_point(|(label, _)| *label < "le");
            let mut with_bound = labels.to_vec();
            with_bound.insert(at, ("le", &bound));
            self.sample(&bucket, &with_bound, cumulative as f64);
        }
        self.sample(&format!("{name}_count"), labels, cumulative as f64);
        self.sample(&format!("{name}_sum"), labels, histogram.sum);
    }

    fn write_sample(&mut self, name: &str, labels: Labels<'_>, value: &str) {
        let escaped = |text: &str| text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!(r#"{label}="{}""#, escaped(value))).collect();
        let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let value = self.instead.unwrap_or(value);
        self.line(format_args!("{name}{braces} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }
}

/// A number as Python's client library writes it: always with a point, and with an exponent from a million up.
fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let plain = format!("{value:?}").replace("inf", "Inf");
    match plain.find('.') {
        Some(point) if value > 0.0 && point > 6 && !plain.contains('e') => {
            let digits = format!("{}.{}{}", &plain[..1], &plain[1..point], &plain[point + 1..]);
            format!("{}e+{:02}", digits.trim_end_matches(['0', '.']), point - 1)
        }
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_on_a_real_page() {
        for (value, text) in [
            (0.0, "0.0"),
            (27809.0, "27809.0"),
            (0.841726618705036, "0.841726618705036"),
            (4_786_233_344.0, "4.786233344e+09"),
            (1.7953659290723882e9, "1.7953659290723882e+09"),
            (123_456.0, "123456.0"),
            (1_000_000.0, "1e+06"),
            (f64::INFINITY, "+Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn labels_are_escaped_and_none_have_no_braces() {
        let mut page = Page::new(None);
        page.sample("a", &[("m", "x\"y\\z\n")], 1.0);
        page.sample("b", &[], 2.0);
        assert_eq!(page.into_text(), "a{m=\"x\\\"y\\\\z\\n\"} 1.0\nb 2.0\n");
    }
}
