//! What was asked: one pass over a request body, and the usage in its answer.
