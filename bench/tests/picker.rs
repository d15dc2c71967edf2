//! The load generator against the empty servers, as a whole and short: every answer sound, every number there.

use std::process::Command;

/// Runs `bench picker` with both floors as started pickers, and gives the rows of its table, cell by cell.
fn rows(arguments: &[&str]) -> Vec<Vec<String>> {
    let start = |name: &str, program: &str| format!("{name}={program} --port {{port}} --threads 1");
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .arg("picker")
        .args(arguments)
        .args(["--floors", "none", "--rounds", "1", "--seconds", "0.2", "--endpoints", "2"])
        .args(["--start", &start("bare", env!("CARGO_BIN_EXE_floor-h2"))])
        .args(["--start", &start("tonic", env!("CARGO_BIN_EXE_floor-tonic"))])
        .output()
        .expect("the generator runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    text.lines().filter(|line| line.starts_with("| bare") || line.starts_with("| tonic")).map(cells).collect()
}

/// Rows of a load: throughput stands second, faults last.
fn assert_sound(rows: &[Vec<String>], tables: usize) {
    assert_eq!(rows.len(), 2 * tables, "{rows:?}");
    for row in rows {
        assert!(row[1].parse::<f64>().is_ok_and(|per_second| per_second > 0.0), "{row:?}");
        assert!(row[2].starts_with(|digit: char| digit.is_ascii_digit()), "CPU is read: {row:?}");
        assert_eq!(row.last().map(String::as_str), Some("0"), "no faults: {row:?}");
    }
}

#[test]
fn a_closed_loop_with_bodies_both_ways() {
    let duplex = ["load", "--body", "1024,200000", "--closed", "4"];
    assert_sound(&rows(&[&duplex[..], &["--answer-mode", "duplex", "--answer-chunks", "3"]].concat()), 2);
}

#[test]
fn an_open_loop_with_a_buffered_body() {
    let partial = ["load", "--body", "200000", "--mode", "partial", "--rate", "200"];
    assert_sound(&rows(&[&partial[..], &["--answer-mode", "streamed", "--answer-chunks", "2"]].concat()), 1);
}

#[test]
fn a_pick_before_the_end_of_the_body_is_seen() {
    let rows = rows(&["load", "--body", "100000", "--closed", "2", "--hold-end"]);
    assert_sound(&rows, 1);
    for row in rows {
        assert_eq!(row[9], "100 %", "the floors pick at the headers: {row:?}");
    }
}

#[test]
fn a_burst_counts_every_pick() {
    for row in rows(&["burst", "--count", "8"]) {
        assert_eq!(&row[2..6], ["1", "0", "8", "8"], "a floor picks one endpoint always: {row:?}");
    }
}
