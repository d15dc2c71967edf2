//! `pointsman check`: before you apply.

use std::io::Write as _;
use std::process::ExitCode;

use pool::Manifest;

use crate::cli::Check;
use crate::sources::{self, SourceError};

/// Exit codes of `check`.
const FAULTS: u8 = 1;
const UNREADABLE: u8 = 2;

/// Prints settings and faults; the exit code tells which there are.
#[expect(
    clippy::print_stderr,
    reason = "a file that cannot be read is told where programs do not read faults"
)]
pub(crate) fn run(flags: &Check) -> ExitCode {
    let mut manifests: Vec<Manifest> = Vec::new();
    let mut unparsable = Vec::new();
    let mut unreadable = false;
    for read in sources::read_each(&flags.files) {
        match read {
            Ok(manifest) => manifests.push(manifest),
            Err(SourceError::Broken(fault)) => unparsable.push(*fault),
            Err(error) => {
                unreadable = true;
                eprintln!("error: {error}");
            }
        }
    }
    let mut report = pool::report(&pool::assemble(&manifests));
    report.faults.splice(0..0, unparsable);
    let printed = write!(std::io::stdout().lock(), "{report}");
    match () {
        () if unreadable || printed.is_err() => ExitCode::from(UNREADABLE),
        () if !report.is_sound() => ExitCode::from(FAULTS),
        () => ExitCode::SUCCESS,
    }
}
