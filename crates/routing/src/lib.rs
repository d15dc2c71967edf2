//! Where to: scorers, prefix index, and a decision with its reasons.
