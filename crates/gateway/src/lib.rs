//! The HTTP door: listener, upstream pool, retries over the ordered list, drain.
