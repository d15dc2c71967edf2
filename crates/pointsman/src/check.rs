//! `pointsman check`: before you apply.

use std::io::Write as _;
use std::process::ExitCode;

use operator::overlay;
use operator::render::{self, Options};
use pool::{Declared, Fault, Manifest, PoolId, PoolVersion};

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
    let declared = pool::assemble(&manifests);
    let mut report = pool::report(&declared);
    report.faults.extend(faults_of_overlays(&declared, &flags.allow_overlay));
    report.faults.sort_by(|one, other| one.position.cmp(&other.position));
    report.faults.splice(0..0, unparsable);
    let printed = write!(std::io::stdout().lock(), "{report}");
    match () {
        () if unreadable || printed.is_err() => ExitCode::from(UNREADABLE),
        () if !report.is_sound() => ExitCode::from(FAULTS),
        () => ExitCode::SUCCESS,
    }
}

/// What the controller would refuse of overlays: what may be set, and how it merges, is the same for all pools.
fn faults_of_overlays(declared: &Declared, allowed: &[String]) -> Vec<Fault> {
    let options = Options { gateway_namespace: String::new(), epp_image: String::new(), conformance: false };
    let default = render::render(&PoolId::new("default", "pool"), PoolVersion::V1, &options);
    declared.overlays.iter().flat_map(|overlay| overlay::faults(overlay, allowed, &default)).collect()
}
