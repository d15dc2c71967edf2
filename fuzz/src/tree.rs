//! Sound JSON out of a fuzzer's bytes, so that they need not find its grammar first: keys that matter, written in many
//! styles.

use arbitrary::{Result, Unstructured};

/// Keys that mean something, by the level of objects at which they do.
pub(crate) type Keys = &'static [&'static [&'static str]];

/// Those of a request, of its messages, and of their parts.
#[rustfmt::skip]
pub(crate) const REQUEST_KEYS: Keys = &[
    &[
        "model", "messages", "prompt", "input", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens",
        "tools", "system", "instructions", "a_key_that_is_longer_than_any_of_ours",
    ],
    &[
        "role", "content", "reasoning", "reasoning_content", "summary", "name", "tool_call_id", "call_id", "tool_calls",
        "function_call", "arguments", "output", "type",
    ],
    &[
        "text", "thinking", "refusal", "name", "id", "tool_use_id", "input", "title", "context", "content", "image_url",
        "input_audio", "audio_url", "video_url", "image", "source", "file", "file_id", "file_url", "file_data", "data",
        "url", "type",
    ],
];

/// Those of an answer.
#[rustfmt::skip]
pub(crate) const ANSWER_KEYS: Keys = &[&[
    "usage", "response", "message", "prompt_tokens", "input_tokens", "completion_tokens", "output_tokens",
    "prompt_tokens_details", "input_tokens_details", "cached_tokens", "cache_read_input_tokens", "choices", "",
]];

const DEPTH_MAX: usize = 8;

/// An object.
pub(crate) fn object(bytes: &[u8], keys: Keys) -> String {
    let mut writer = Writer { dice: Unstructured::new(bytes), keys, text: String::new() };
    // Where the bytes run out, each choice is the first.
    let _ = writer.object(0);
    writer.text
}

/// An event stream with an object in most of its `data` lines.
pub(crate) fn events(bytes: &[u8], keys: Keys) -> String {
    let mut writer = Writer { dice: Unstructured::new(bytes), keys, text: String::new() };
    while !writer.dice.is_empty() {
        let _ = writer.line();
    }
    writer.text
}

struct Writer<'a> {
    dice: Unstructured<'a>,
    keys: Keys,
    text: String,
}

impl Writer<'_> {
    fn line(&mut self) -> Result<()> {
        match self.dice.int_in_range(0..=9)? {
            0 => self.text += "event: x",
            1 => self.text += "data: [DONE]",
            2 => self.text += ": data: {\"usage\":{\"prompt_tokens\":7}}",
            style => {
                self.text += if style < 6 { "data: " } else { "data:" };
                let _ = self.object(0);
            }
        }
        self.text += self.dice.choose(&["\n\n", "\n", "\r\n\r\n", "\r\r", "\r\n"])?;
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<()> {
        self.blank();
        let sides = if depth < DEPTH_MAX { 13 } else { 8 };
        match self.dice.int_in_range(0..=sides)? {
            0 => self.text += "null",
            1 => self.text += "true",
            2 => self.text += "false",
            3 | 4 => self.text += &self.dice.arbitrary::<u32>()?.to_string(),
            5 => {
                let odd =
                    ["-0", "1.5", "1e3", "2E-1", "0", "18446744073709551616", "4294967296", "1e999", "-7"];
                self.text += self.dice.choose(&odd)?;
            }
            6..=8 => self.string()?,
            9 | 10 => self.object(depth + 1)?,
            _ => {
                self.text.push('[');
                let elements = self.members(|writer| writer.value(depth + 1));
                self.text.push(']');
                elements?;
            }
        }
        self.blank();
        Ok(())
    }

    fn object(&mut self, depth: usize) -> Result<()> {
        self.text.push('{');
        let fields = self.members(|writer| {
            writer.blank();
            // Messages stand in an array of the request, parts in one of a message; now and then a key stands elsewhere.
            let level = if writer.dice.ratio(1, 8)? { writer.dice.choose_index(3)? } else { depth / 2 };
            let keys = writer.keys[level.min(writer.keys.len() - 1)];
            let key = *writer.dice.choose(keys)?;
            writer.text.push('"');
            let escaped =
                if writer.dice.ratio(1, 12)? { writer.dice.choose_index(key.len() + 1)? } else { key.len() };
            for (at, char) in key.chars().enumerate() {
                if at == escaped {
                    writer.text += &format!("\\u{:04x}", u32::from(char));
                } else {
                    writer.text.push(char);
                }
            }
            writer.text += "\":";
            writer.value(depth)
        });
        self.text.push('}');
        fields
    }

    /// Members with commas between them, until the bytes run out.
    fn members(&mut self, mut member: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let mut first = true;
        while !self.dice.is_empty() && self.dice.ratio(3, 4)? {
            if !first {
                self.text.push(',');
            }
            member(self)?;
            first = false;
        }
        Ok(())
    }

    fn string(&mut self) -> Result<()> {
        let pieces = [
            "a",
            "user",
            " ",
            "\\n",
            "\\b\\f\\r\\t",
            "\\\"",
            "\\\\",
            "é",
            "漢",
            "😀",
            "\\u00e9",
            "\\ud83d\\ude00",
            "\\ud83d",
            "\\ude00",
            "\\/",
            "\\\"usage\\\":{",
            "\\u0000",
            "\u{7f}",
            "Once upon a time there was a model server, and it was asked",
        ];
        self.text.push('"');
        let outcome = (|| {
            while !self.dice.is_empty() && self.dice.ratio(3, 4)? {
                let piece = *self.dice.choose(&pieces)?;
                self.text += piece;
            }
            Ok(())
        })();
        self.text.push('"');
        outcome
    }

    fn blank(&mut self) {
        let blank = self.dice.int_in_range(0..=15).unwrap_or(15);
        self.text += ["\n", "\t", " ", "\r\n"].get(blank).copied().unwrap_or_default();
    }
}
