//! What queueing costs and what it brings: the core alone, fairness, three classes of requests at twice the capacity,
//! the same beside a Go picker, memory while 10,000 prompts wait.
//!
//! `bench queue [core | fairness | classes | peers | memory]`; all of them but `peers` without a name.

mod classes;
mod core;
mod door;
mod fairness;
mod house;
mod memory;

use anyhow::bail;

/// Runs the steps named, or all.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let all = ["core", "fairness", "classes", "memory"];
    for step in if arguments.is_empty() { &all } else { arguments } {
        match *step {
            "core" => {
                core::run()?;
                runtime.block_on(core::through_the_director())?;
            }
            "fairness" => fairness::run()?,
            "classes" => runtime.block_on(classes::run())?,
            "peers" => runtime.block_on(classes::peers())?,
            "memory" => runtime.block_on(memory::run())?,
            _ => bail!("usage: bench queue [{} | peers]", all.join(" | ")),
        }
    }
    Ok(())
}
