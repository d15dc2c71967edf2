//! Benchmarks: `cargo run --release -p bench -- <name>` prints Markdown tables for `docs/benchmarks.md`.

mod decisions;
mod gateway;
mod index;
mod picker;
mod queue;
mod replay;
mod report;
mod trace;
mod world;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            decisions::run()?;
            index::run()?;
            replay::run()
        }
        ["decisions"] => decisions::run(),
        ["index"] => index::run(),
        ["index", shape] => index::measure(shape),
        ["replay"] => replay::run(),
        ["gateway", ref steps @ ..] => gateway::run(steps),
        ["queue", ref steps @ ..] => queue::run(steps),
        ["picker", ..] => picker::run(&arguments[1..]),
        _ => anyhow::bail!("usage: bench [decisions | index | replay | gateway | picker | queue]"),
    }
}
