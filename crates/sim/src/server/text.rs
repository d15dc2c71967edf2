//! Answers: words that follow from prompt, model and seed, so that every server gives the same ones.

use twox_hash::XxHash3_64;

use crate::tokens::{TOKEN_BYTES, tokenize};

/// Three letters and a space: each is exactly one token, wherever it stands.
const WORDS: &str = "\
    the and she was for not you had but who all one out now him her two way may its see man \
    old new day ask run sun sea sky red big far own put say few low ago air art bed car cat \
    cup dog eye fox hat ice job key law map oak owl pen raw six ten van war yes zoo ";

/// The answer to one prompt, as long as one cares to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    seed: u64,
}

impl Answer {
    /// The answer of `model` to `prompt`; `choice` tells apart several answers to one prompt.
    pub(crate) fn new(prompt: &[u32], model: &str, choice: u64, seed: u64) -> Self {
        let prompt: Vec<u8> = prompt.iter().flat_map(|token| token.to_le_bytes()).collect();
        let chain = XxHash3_64::oneshot_with_seed(seed, model.as_bytes());
        let chain = XxHash3_64::oneshot_with_seed(chain, &prompt);
        Self { seed: XxHash3_64::oneshot_with_seed(chain, &choice.to_le_bytes()) }
    }

    /// The text of token `index`.
    pub(crate) fn token(self, index: u32) -> &'static str {
        let drawn = XxHash3_64::oneshot_with_seed(self.seed, &index.to_le_bytes());
        let word = (drawn % (WORDS.len() / TOKEN_BYTES) as u64) as usize * TOKEN_BYTES;
        &WORDS[word..word + TOKEN_BYTES]
    }

    /// The text of the first `count` tokens.
    pub(crate) fn text(self, count: u32) -> String {
        (0..count).map(|index| self.token(index)).collect()
    }

    /// The first `count` tokens, as the next prompt will have them.
    pub(crate) fn tokens(self, count: u32) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(count as usize);
        tokenize(self.text(count).as_bytes(), &mut tokens);
        tokens
    }

    /// How long the answer is by itself, in tokens: between the two bounds.
    pub(crate) fn length(self, min: u32, max: u32) -> u32 {
        let spread = u64::from(max.saturating_sub(min)) + 1;
        let drawn = XxHash3_64::oneshot_with_seed(self.seed, b"length") % spread;
        min.saturating_add(drawn as u32).max(1)
    }

    /// `dimensions` numbers of an embedding, of length one.
    pub(crate) fn embedding(self, dimensions: u32) -> Vec<f64> {
        let draw = |index: u32| {
            let drawn = XxHash3_64::oneshot_with_seed(!self.seed, &index.to_le_bytes());
            drawn as f64 / u64::MAX as f64 - 0.5
        };
        let numbers: Vec<f64> = (0..dimensions).map(draw).collect();
        let length = numbers.iter().map(|number| number * number).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        numbers.into_iter().map(|number| number / length).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_depends_on_prompt_model_choice_and_seed_and_on_nothing_else() {
        let base = Answer::new(&[1, 2], "m", 0, 0);
        assert_eq!(base, Answer::new(&[1, 2], "m", 0, 0));
        let others = [
            Answer::new(&[1, 3], "m", 0, 0),
            Answer::new(&[1, 2], "n", 0, 0),
            Answer::new(&[1, 2], "m", 1, 0),
        ];
        for other in others.into_iter().chain([Answer::new(&[1, 2], "m", 0, 1)]) {
            assert_ne!(base.text(20), other.text(20));
        }
    }

    #[test]
    fn every_word_is_one_token() {
        assert!(WORDS.is_ascii() && WORDS.split_inclusive(' ').all(|word| word.len() == TOKEN_BYTES));
    }

    #[test]
    fn text_comes_back_as_the_tokens_it_was_made_of() {
        let answer = Answer::new(&[1], "m", 0, 0);
        assert_eq!(answer.tokens(30).len(), 30);
        assert_eq!(answer.text(30).len(), 120);
        assert!(answer.text(30).starts_with(&answer.text(29)));
    }

    #[test]
    fn lengths_stay_within_their_bounds_even_when_these_are_the_wrong_way_round() {
        for prompt in 0..200 {
            let answer = Answer::new(&[prompt], "m", 0, 0);
            assert!((5..=9).contains(&answer.length(5, 9)));
            assert_eq!(answer.length(9, 5), 9);
            assert_eq!(answer.length(0, 0), 1);
            answer.length(u32::MAX, u32::MAX);
        }
    }

    #[test]
    fn an_embedding_has_length_one() {
        let numbers = Answer::new(&[1], "m", 0, 0).embedding(16);
        let length: f64 = numbers.iter().map(|number| number * number).sum();
        assert!((length - 1.0).abs() < 1e-9 && numbers.len() == 16);
    }
}
