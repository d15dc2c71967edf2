//! Writes the Helm chart into a folder, or checks that it is there as it should be: `cargo xtask chart` calls it.
#![expect(clippy::print_stderr, reason = "the last word of a command")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), mode) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: chart FOLDER [--check]");
        return ExitCode::from(2);
    };
    let outcome = if mode.is_some() { check(Path::new(&folder)) } else { write(Path::new(&folder)) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn files() -> Outcome<Vec<(String, String)>> {
    Ok(operator::install::chart::files(env!("CARGO_PKG_VERSION"))?)
}

fn write(folder: &Path) -> Outcome<()> {
    for (path, text) in files()? {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, text)?;
    }
    Ok(())
}

fn check(folder: &Path) -> Outcome<()> {
    let expected = files()?;
    for (path, text) in &expected {
        let there = fs::read_to_string(folder.join(path)).unwrap_or_default();
        if there != *text {
            return Err(format!("{path} is not what the code says: run `cargo xtask chart`").into());
        }
    }
    let known: BTreeSet<PathBuf> = expected.iter().map(|(path, _)| folder.join(path)).collect();
    for place in ["", "templates", "crds"] {
        for entry in fs::read_dir(folder.join(place))? {
            let path = entry?.path();
            if path.is_file() && !known.contains(&path) {
                return Err(
                    format!("{} is not one of the chart's files: take it away", path.display()).into()
                );
            }
        }
    }
    Ok(())
}
