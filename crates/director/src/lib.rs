//! The life of a request: parse, decide, book, observe, end.
