//! The requests that are sent: chat completions of a given size whose prompts share what they are told to share, cut
//! and encoded once, so that a request costs the generator no more than patching some digits.

use bench::ext_proc::{BodyMode, RequestKind, body_message, framed};
use bytes::{Bytes, BytesMut};

use crate::trace::mix;

/// Digits of a number in a prompt.
const DIGITS: usize = 16;
/// What prompts of one group share, at most: pickers look at so much of a prompt.
const SHARED_BYTES_MAX: usize = 4096;
/// A smaller chunk could cut a number in two.
const CHUNK_BYTES_MIN: usize = 1024;

/// What prompts have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// One prompt.
    Same,
    /// So many groups; within one the first half (at most 4 KB) is the same.
    Groups(u64),
    /// Nothing: they differ from the first word on.
    Different,
}

impl std::str::FromStr for Sharing {
    type Err = String;

    fn from_str(text: &str) -> Result<Sharing, String> {
        match text {
            "same" => Ok(Sharing::Same),
            "different" => Ok(Sharing::Different),
            _ => match text.strip_prefix("groups:").and_then(|count| count.parse().ok()) {
                Some(count) if count > 0 => Ok(Sharing::Groups(count)),
                _ => Err("expected same, different or groups:COUNT".to_owned()),
            },
        }
    }
}

/// How bodies are shaped and cut.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) model: String,
    pub(crate) body_bytes: usize,
    /// Decides how the body is cut, as Envoy does it.
    pub(crate) mode: BodyMode,
    /// Of a body that comes in chunks.
    pub(crate) chunk_bytes: usize,
    /// What Envoy buffers in BUFFERED_PARTIAL; it sends no more.
    pub(crate) partial_bytes: usize,
}

/// A message of a request body, framed.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) frame: Bytes,
    /// The piece of the body in it.
    pub(crate) body: Bytes,
}

/// Makes the bodies of one shape.
#[derive(Clone, Debug)]
pub(crate) struct Prompts {
    templates: Vec<Template>,
    sharing: Sharing,
    /// Makes the prompts of this run new to a server that saw another one.
    seed: u64,
    body_bytes: usize,
}

#[derive(Clone, Debug)]
struct Template {
    piece: Piece,
    body_at: usize,
    /// Where in the frame the number of the group, and that of the prompt, stand.
    group_at: Option<usize>,
    serial_at: Option<usize>,
}

impl Prompts {
    /// `seed` tells prompts of one run from those of another.
    pub(crate) fn new(shape: &Shape, sharing: Sharing, seed: u64) -> Prompts {
        let (body, group_at, mut serial_at) = body(shape);
        let chunk = shape.chunk_bytes.max(CHUNK_BYTES_MIN);
        if serial_at / chunk != (serial_at + DIGITS - 1) / chunk {
            serial_at -= DIGITS;
        }
        // The pieces, each with whether it is the last.
        let cut: Vec<(&[u8], bool)> = match shape.mode {
            BodyMode::None => Vec::new(),
            // Seen from Envoy with HTTP/1.1 clients: the end comes in an empty message of its own.
            BodyMode::Streamed | BodyMode::FullDuplexStreamed => {
                body.chunks(chunk).map(|piece| (piece, false)).chain([(&[][..], true)]).collect()
            }
            BodyMode::BufferedPartial if body.len() > shape.partial_bytes => {
                vec![(&body[..shape.partial_bytes], false)]
            }
            BodyMode::Buffered | BodyMode::BufferedPartial => vec![(&body[..], true)],
        };
        let mut templates = Vec::with_capacity(cut.len());
        let mut begin = 0;
        for (piece, end) in cut {
            let within = |at: usize| at.checked_sub(begin).filter(|offset| offset + DIGITS <= piece.len());
            let (message, at) = body_message(RequestKind::RequestBody, piece, end, &[]);
            let frame = framed(&message);
            let body_at = frame.len() - message.len() + at;
            templates.push(Template {
                piece: Piece { body: frame.slice(body_at..body_at + piece.len()), frame },
                body_at,
                group_at: within(group_at).map(|offset| body_at + offset),
                serial_at: within(serial_at).map(|offset| body_at + offset),
            });
            begin += piece.len();
        }
        Prompts { templates, sharing, seed, body_bytes: body.len() }
    }

    /// The length of a whole body, as `content-length` has it.
    pub(crate) fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// The messages of the body of this request.
    pub(crate) fn pieces(&self, number: u64) -> impl ExactSizeIterator<Item = Piece> + '_ {
        let number = self.seed.wrapping_add(number);
        let group = match self.sharing {
            Sharing::Same => self.seed,
            Sharing::Groups(count) => self.seed.wrapping_add(number % count),
            Sharing::Different => number,
        };
        let serial = if self.sharing == Sharing::Same { self.seed } else { number };
        self.templates.iter().map(move |template| {
            if template.group_at.is_none() && template.serial_at.is_none() {
                return template.piece.clone();
            }
            let mut frame = BytesMut::from(&template.piece.frame[..]);
            for (at, number) in [(template.group_at, group), (template.serial_at, !serial)] {
                if let Some(at) = at {
                    frame[at..at + DIGITS].copy_from_slice(&digits(number));
                }
            }
            let frame = frame.freeze();
            Piece { body: frame.slice(template.body_at..template.body_at + template.piece.body.len()), frame }
        })
    }
}

/// Hexadecimal digits that differ early between numbers that are near.
pub(crate) fn digits(number: u64) -> [u8; DIGITS] {
    let mixed = mix(number);
    std::array::from_fn(|digit| b"0123456789abcdef"[(mixed >> (60 - 4 * digit)) as usize & 15])
}

/// A body of the shape's size (or the least that holds a prompt), and where the numbers of group and prompt stand.
fn body(shape: &Shape) -> (Vec<u8>, usize, usize) {
    let head = format!(
        r#"{{"model":"{}","stream":true,"max_tokens":16,"messages":[{{"role":"user","content":""#,
        shape.model
    );
    let tail = r#""}]}"#;
    let text_bytes = shape.body_bytes.saturating_sub(head.len() + tail.len()).max(3 * DIGITS);
    let shared = (text_bytes / 2).min(SHARED_BYTES_MAX);
    let words = b"the points of a railway are set by hand and each train takes its own track ";
    let text = (0..text_bytes).map(|at| words[at % words.len()]);
    let body = head.bytes().chain(text).chain(tail.bytes()).collect();
    (body, head.len(), head.len() + shared)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn shape(mode: BodyMode, body_bytes: usize) -> Shape {
        Shape { model: "tiny".to_owned(), body_bytes, mode, chunk_bytes: 65_536, partial_bytes: 65_536 }
    }

    fn whole(prompts: &Prompts, number: u64) -> Vec<u8> {
        prompts.pieces(number).flat_map(|piece| piece.body).collect()
    }

    fn content(body: &[u8]) -> String {
        let json: serde_json::Value = serde_json::from_slice(body).expect("a body is JSON");
        json["messages"][0]["content"].as_str().expect("a prompt").to_owned()
    }

    #[test]
    fn bodies_are_json_of_the_size_asked_for_and_end_once() {
        for bytes in [1024, 10 << 10, 220 << 10] {
            for mode in [BodyMode::FullDuplexStreamed, BodyMode::Buffered] {
                let prompts = Prompts::new(&shape(mode, bytes), Sharing::Different, 5);
                assert_eq!(prompts.body_bytes(), bytes);
                assert_eq!(whole(&prompts, 1).len(), bytes);
                content(&whole(&prompts, 1));
                let ends = prompts.pieces(1).map(|piece| {
                    let message = piece.frame.slice(5..);
                    bench::ext_proc::Request::parse(&message).expect("a message").end_of_stream
                });
                let ends: Vec<bool> = ends.collect();
                assert_eq!(ends.iter().filter(|end| **end).count(), 1);
                assert_eq!(ends.last(), Some(&true));
            }
        }
    }

    #[test]
    fn what_does_not_fit_envoys_buffer_is_not_sent() {
        let prompts = Prompts::new(&shape(BodyMode::BufferedPartial, 220 << 10), Sharing::Different, 5);
        let pieces: Vec<Piece> = prompts.pieces(0).collect();
        assert_eq!(pieces.iter().map(|piece| piece.body.len()).collect::<Vec<_>>(), [65_536]);
        assert_eq!(prompts.body_bytes(), 220 << 10);
    }

    #[test]
    fn prompts_share_what_they_are_told_to() {
        let prompt = |sharing, number| {
            let shape = shape(BodyMode::FullDuplexStreamed, 20 << 10);
            content(&whole(&Prompts::new(&shape, sharing, 5), number))
        };
        let same: HashSet<String> = (0..9).map(|number| prompt(Sharing::Same, number)).collect();
        assert_eq!(same.len(), 1);
        let different: HashSet<String> =
            (0..9).map(|number| prompt(Sharing::Different, number)[..16].to_owned()).collect();
        assert_eq!(different.len(), 9);
        let grouped: Vec<String> = (0..9).map(|number| prompt(Sharing::Groups(3), number)).collect();
        let prefixes: HashSet<&str> = grouped.iter().map(|prompt| &prompt[..4096]).collect();
        assert_eq!((prefixes.len(), grouped.iter().collect::<HashSet<_>>().len()), (3, 9));
    }

    #[test]
    fn another_seed_makes_other_prompts() {
        let body = |seed| whole(&Prompts::new(&shape(BodyMode::Buffered, 1024), Sharing::Same, seed), 0);
        assert_ne!(body(1), body(2));
    }

    #[test]
    fn sharing_is_read_from_text() {
        assert_eq!("groups:7".parse(), Ok(Sharing::Groups(7)));
        assert_eq!("same".parse(), Ok(Sharing::Same));
        assert!("groups:0".parse::<Sharing>().is_err());
    }
}
