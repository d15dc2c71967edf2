//! What the prefix index takes in memory: 100 endpoints with 50,000 blocks each, in several shapes of prompts.
//!
//! Each shape is filled in a process of its own, whose resident memory before and after tells what the operating system
//! sees: allocator's rounding, slack of growing tables and all.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use endpoints::{Endpoint, EndpointId, Slot};
use routing::PrefixIndex;

use crate::report::{Table, line, time};
use crate::{trace, world};

const ENDPOINTS: usize = 100;
const CAPACITY: usize = 50_000;
const SHAPES: [(&str, usize); 4] = [
    ("all different, 128 blocks", 128),
    ("all different, 8 blocks", 8),
    ("all different, 2 blocks", 2),
    ("all different, 1 block", 1),
];
const MOONCAKE: &str = "Mooncake trace, up to 128 blocks";

pub(crate) fn run() -> anyhow::Result<()> {
    Table::new(
        "Prefix index: 100 endpoints x 50,000 blocks",
        &["prompts", "blocks held", "resident MB", "bytes a block", "memory_bytes() MB", "ns a record"],
    )?;
    for shape in SHAPES.map(|(name, _)| name).into_iter().chain([MOONCAKE]) {
        let status = Command::new(std::env::current_exe()?).args(["index", shape]).status()?;
        anyhow::ensure!(status.success(), "measuring {shape}: {status}");
    }
    Ok(())
}

/// Fills an index with one shape and prints its row.
pub(crate) fn measure(shape: &str) -> anyhow::Result<()> {
    if shape == MOONCAKE {
        let requests = trace::load()?;
        return fill(shape, |number| {
            let day = number / requests.len() as u64;
            trace::blocks(&requests[number as usize % requests.len()], trace::mix(day), 64, 128)
        });
    }
    let (_, blocks) = SHAPES.into_iter().find(|(name, _)| *name == shape).context("no such shape")?;
    let blocks = blocks as u64;
    fill(shape, |number| (0..blocks).map(|block| trace::mix(number * blocks + block)).collect())
}

fn fill(shape: &str, prompt: impl Fn(u64) -> Vec<u64>) -> anyhow::Result<()> {
    let owners: Vec<EndpointId> =
        world::specs(ENDPOINTS).into_iter().map(|spec| Endpoint::new(Slot::new(0), spec).id).collect();
    let before = resident_bytes()?;
    let mut index = PrefixIndex::new(CAPACITY);
    let mut spent = Duration::ZERO;
    // Three times what it holds, so that eviction has left its marks.
    let (mut number, mut offered) = (0, 0);
    while offered < 3 * ENDPOINTS * CAPACITY {
        let blocks = prompt(number);
        let slot = number as usize % ENDPOINTS;
        spent += time(|| drop(index.record(Slot::new(slot as u32), owners[slot], &blocks)));
        number += 1;
        offered += blocks.len();
    }
    let resident = resident_bytes()?.saturating_sub(before) as f64;
    line(&format!(
        "| {shape} | {} | {:.1} | {:.1} | {:.1} | {:.0} |",
        index.blocks_held(),
        resident / 1e6,
        resident / index.blocks_held() as f64,
        index.memory_bytes() as f64 / 1e6,
        spent.as_nanos() as f64 / number as f64
    ))
}

fn resident_bytes() -> anyhow::Result<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let resident = pages.split(' ').nth(1).context("/proc/self/statm has a second field")?;
    Ok(resident.parse::<usize>()? * 4096)
}
