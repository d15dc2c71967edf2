//! What a decision promises, by the behaviours that the issue names.

mod burst;
mod order;
mod prefix;
mod scorers;
mod world;
