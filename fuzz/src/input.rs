//! A fuzzer's bytes: some settings, then the text. A seed is a readable file: its first line holds the settings.

/// Bytes of settings before the text; in a seed the last is a line feed.
pub(crate) const HEAD_BYTES: usize = 8;

/// One input, taken apart.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    head: [u8; HEAD_BYTES],
    pub(crate) text: &'a [u8],
}

impl<'a> Input<'a> {
    /// None if there is no room for the settings.
    pub(crate) fn take(data: &'a [u8]) -> Option<Self> {
        let (&head, text) = data.split_first_chunk()?;
        Some(Self { head, text })
    }

    /// The same settings for another text.
    pub(crate) fn with_text(self, text: &'a [u8]) -> Self {
        Self { text, ..self }
    }

    /// A setting below `sides`; the digits `0` and on of a seed stand for 0 and on.
    pub(crate) fn choice(&self, index: usize, sides: usize) -> usize {
        usize::from(self.head[index].wrapping_sub(b'0')) % sides
    }

    /// One of `all`.
    pub(crate) fn pick<T: Copy>(&self, index: usize, all: &[T]) -> T {
        all[self.choice(index, all.len())]
    }

    /// Cuts `bytes` into pieces, empty ones among them, as the two settings at `index` say.
    pub(crate) fn cut<'b>(&self, index: usize, mut bytes: &'b [u8]) -> Vec<&'b [u8]> {
        let mut state = u64::from(self.head[index]) << 8 | u64::from(self.head[index + 1]);
        let mut roll = |sides: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % sides
        };
        // At most some hundreds of pieces, however long the text.
        let longest = [2, 9, 60, bytes.len() + 1][roll(4)].max(bytes.len() / 200 + 1);
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(roll(longest + 1).min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }

    /// The text with `filler` put in, so that byte `place` of the result is near where it ends; as it is unless the setting
    /// at `index` is a small letter, so that most inputs stay short.
    pub(crate) fn padded(&self, index: usize, filler: u8, place: usize) -> Vec<u8> {
        let setting = self.head[index];
        if !setting.is_ascii_lowercase() {
            return self.text.to_vec();
        }
        let at = usize::from(self.head[index + 1]) * self.text.len() / 256;
        let (before, after) = self.text.split_at(at);
        let end = place + 4 * usize::from(setting - b'a') - 64;
        [before, &vec![filler; end.saturating_sub(before.len())], after].concat()
    }
}
