//! Prometheus' text format, read slowly, character by character, as its description reads
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), and no more leniently.
//!
//! Ours because none of the crates will do as an oracle: openmetrics-parser refuses whole pages by rules on families
//! that engines break, prometheus-parse knows no `:` in names and no `}` in labels, and neither undoes escapes.

/// What a line is.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    /// Empty, or a comment.
    Nothing,
    Sample(Sample),
    /// Not what the description allows; a reader may be more lenient.
    Odd,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a line, without its line feed.
pub(crate) fn read(line: &[u8]) -> Line {
    let Ok(line) = std::str::from_utf8(line) else { return Line::Odd };
    let mut cursor = Cursor { chars: line.chars().collect(), at: 0 };
    cursor.skip_blanks();
    if matches!(cursor.peek(), None | Some('#')) {
        return Line::Nothing;
    }
    cursor.sample().map_or(Line::Odd, Line::Sample)
}

struct Cursor {
    chars: Vec<char>,
    at: usize,
}

impl Cursor {
    fn sample(&mut self) -> Option<Sample> {
        let name = self.word(|char| char.is_ascii_alphanumeric() || char == '_' || char == ':')?;
        if !matches!(self.peek(), Some('{' | ' ' | '\t')) {
            return None;
        }
        self.skip_blanks();
        let mut labels: Vec<(String, String)> = Vec::new();
        if self.take('{') {
            self.skip_blanks();
            while !self.take('}') {
                let label = self.label()?;
                if labels.iter().any(|(name, _)| *name == label.0) {
                    return None;
                }
                labels.push(label);
                self.skip_blanks();
                if !self.take(',') && self.peek() != Some('}') {
                    return None;
                }
                self.skip_blanks();
            }
        }
        let rest: String = self.chars[self.at..].iter().collect();
        let mut words = rest.split([' ', '\t']).filter(|word| !word.is_empty());
        let value = float(words.next()?)?;
        if let Some(time) = words.next() {
            time.parse::<i64>().ok()?;
        }
        words.next().is_none().then_some(Sample { name, labels, value })
    }

    fn label(&mut self) -> Option<(String, String)> {
        let name = self.word(|char| char.is_ascii_alphanumeric() || char == '_')?;
        self.skip_blanks();
        if !self.take('=') {
            return None;
        }
        self.skip_blanks();
        if !self.take('"') {
            return None;
        }
        let mut value = String::new();
        while !self.take('"') {
            let char = self.next()?;
            value.push(if char != '\\' {
                char
            } else {
                match self.next()? {
                    'n' => '\n',
                    char @ ('\\' | '"') => char,
                    _ => return None,
                }
            });
        }
        Some((name, value))
    }

    /// Characters that `is_part`, the first no digit.
    fn word(&mut self, is_part: impl Fn(char) -> bool) -> Option<String> {
        let mut word = String::new();
        while let Some(char) = self.peek().filter(|&char| is_part(char)) {
            word.push(char);
            self.at += 1;
        }
        word.starts_with(|first: char| !first.is_ascii_digit()).then_some(word)
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t')) {
            self.at += 1;
        }
    }

    fn take(&mut self, char: char) -> bool {
        let is_next = self.peek() == Some(char);
        self.at += usize::from(is_next);
        is_next
    }

    fn next(&mut self) -> Option<char> {
        let char = self.peek()?;
        self.at += 1;
        Some(char)
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }
}

/// A decimal number, `Inf` or `NaN`, as Go's ParseFloat takes them; its hexadecimal ones nobody writes.
fn float(word: &str) -> Option<f64> {
    let unsigned = word.strip_prefix(['+', '-']).unwrap_or(word);
    let sign = if word.starts_with('-') { -1.0 } else { 1.0 };
    match unsigned.to_ascii_lowercase().as_str() {
        "inf" | "infinity" => return Some(sign * f64::INFINITY),
        "nan" => return (unsigned == word).then_some(f64::NAN),
        _ => {}
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.strip_prefix(['+', '-']).unwrap_or(exponent)),
        None => (unsigned, "0"),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_number = digits(whole) && digits(fraction) && whole.len() + fraction.len() > 0;
    (is_number && digits(exponent) && !exponent.is_empty()).then(|| word.parse().expect("a number"))
}
