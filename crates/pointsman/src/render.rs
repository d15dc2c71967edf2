//! `pointsman render`: what the controller would make of the pools in files.

use std::io::Write as _;
use std::process::ExitCode;

use operator::overlay::Overlay;
use operator::render::{self, PickerObjects};
use pool::{Declared, InferencePool, Manifest, PoolPolicy};

use crate::cli::Render;
use crate::sources;

/// Exit codes, as those of `check`.
const FAULTS: u8 = 1;
const UNREADABLE: u8 = 2;

/// Prints the objects of every pool, and on stderr what is wrong; a pool with a broken overlay is printed as it would begin: the
/// default.
#[expect(clippy::print_stderr, reason = "stdout is what is piped into kubectl")]
pub(crate) fn run(flags: &Render) -> ExitCode {
    let mut manifests: Vec<Manifest> = Vec::new();
    for read in sources::read_each(&flags.files) {
        match read {
            Ok(manifest) => manifests.push(manifest),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::from(UNREADABLE);
            }
        }
    }
    let declared = pool::assemble(&manifests);
    let mut faults: Vec<String> = declared.faults.iter().map(ToString::to_string).collect();
    let mut text = String::new();
    for pool in &declared.pools {
        let objects = objects(flags, pool, &declared, &mut faults);
        for object in objects.in_order() {
            match serde_saphyr::to_string(object) {
                Ok(yaml) => text.extend(["---\n", &yaml]),
                Err(error) => faults.push(format!("{}: {error}", pool.id)),
            }
        }
    }
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(_) => ExitCode::from(UNREADABLE),
        Ok(()) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(FAULTS),
    }
}

fn objects(
    flags: &Render,
    pool: &InferencePool,
    declared: &Declared,
    faults: &mut Vec<String>,
) -> PickerObjects {
    let default = render::render(&pool.id, pool.version, &flags.pickers.options());
    let Some(name) = PoolPolicy::resolve(&pool.annotations, None).policy.epp_overlay else { return default };
    let is_named = |overlay: &&pool::Overlay| overlay.namespace == pool.id.namespace && overlay.name == name;
    let Some(overlay) = declared.overlays.iter().find(is_named) else { return default };
    let reshaped =
        Overlay::read(overlay, &flags.pickers.allow_overlay).and_then(|overlay| overlay.apply(&default));
    reshaped.unwrap_or_else(|wrong| {
        let of = format!("ConfigMap {}/{}", overlay.namespace, overlay.name);
        faults.extend(wrong.iter().map(|fault| format!("{of}: {fault}")));
        default
    })
}
