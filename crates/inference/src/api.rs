//! The inference APIs whose requests are understood, told apart by the request path.

/// An API of a model server that carries a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// OpenAI `POST /v1/chat/completions`.
    ChatCompletions,
    /// OpenAI `POST /v1/completions`.
    Completions,
    /// OpenAI `POST /v1/embeddings`.
    Embeddings,
    /// OpenAI `POST /v1/responses`.
    Responses,
    /// Anthropic `POST /v1/messages`.
    Messages,
}

impl Api {
    /// The API behind a request path; a query is ignored. `None` for every other path: such a request carries
    /// no prompt that this crate can read.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        match path.split_once('?').map_or(path, |(path, _query)| path) {
            "/v1/chat/completions" => Some(Self::ChatCompletions),
            "/v1/completions" => Some(Self::Completions),
            "/v1/embeddings" => Some(Self::Embeddings),
            "/v1/responses" => Some(Self::Responses),
            "/v1/messages" => Some(Self::Messages),
            _ => None,
        }
    }

    /// The field of the request body without which there is no prompt.
    #[must_use]
    pub fn prompt_field(self) -> &'static str {
        match self {
            Self::ChatCompletions | Self::Messages => "messages",
            Self::Completions => "prompt",
            Self::Embeddings | Self::Responses => "input",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_api_with_and_without_a_query() {
        assert_eq!(Api::from_path("/v1/chat/completions"), Some(Api::ChatCompletions));
        assert_eq!(Api::from_path("/v1/completions?debug=1"), Some(Api::Completions));
        assert_eq!(Api::from_path("/v1/embeddings?"), Some(Api::Embeddings));
        assert_eq!(Api::from_path("/v1/responses"), Some(Api::Responses));
        assert_eq!(Api::from_path("/v1/messages"), Some(Api::Messages));
    }

    #[test]
    fn paths_that_only_look_alike_name_none() {
        for path in [
            "",
            "/",
            "/v1/models",
            "/v1/messages/",
            "/v1/messages/count_tokens",
            "/V1/messages",
            "v1/messages",
        ] {
            assert_eq!(Api::from_path(path), None, "{path}");
        }
    }
}
