//! Documents that are made from code, so that they cannot tell anything else.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

/// A file below the root, and who writes it.
type Page = (&'static str, fn() -> String);

const PAGES: &[Page] = &[("docs/settings.md", settings), ("docs/metrics.md", telemetry::reference)];

/// Writes every page that differs from its source.
pub(crate) fn write(root: &Path) -> anyhow::Result<()> {
    for (path, text) in drifted(root, PAGES)? {
        fs::write(root.join(path), text).with_context(|| format!("{path} cannot be written"))?;
        println!("{path} written");
    }
    Ok(())
}

/// # Errors
/// Names every page that differs from its source.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let paths: Vec<_> = drifted(root, PAGES)?.into_iter().map(|(path, _)| path).collect();
    if !paths.is_empty() {
        bail!("{} differ from the code that they are made from; run `cargo xtask docs`", paths.join(", "));
    }
    Ok(())
}

/// The pages that are not what they should be, and what they should be.
fn drifted(root: &Path, pages: &[Page]) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut drifted = Vec::new();
    for &(path, made) in pages {
        let text = made();
        match fs::read_to_string(root.join(path)) {
            Ok(there) if there == text => {}
            Ok(_) => drifted.push((path, text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => drifted.push((path, text)),
            Err(error) => return Err(error).with_context(|| format!("{path} cannot be read")),
        }
    }
    Ok(drifted)
}

fn settings() -> String {
    format!(
        "# Settings\n\nWritten by `cargo xtask docs` from crates/pool/src/settings.rs: do not edit.\n\n\
         Annotations on an InferencePool, v1 and v1alpha2 alike. A change is in force within a second, without a failed\n\
         request. A value that does not parse or is out of range leaves the last valid one of that setting in force.\n\n{}",
        pool::settings_reference()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_missing_or_edited_has_drifted() {
        let root = std::env::temp_dir().join(format!("pointsman-docs-{}", std::process::id()));
        fs::create_dir_all(&root).expect("a temporary folder");
        fs::write(root.join("same.md"), "text").expect("written");
        fs::write(root.join("edited.md"), "text, and more").expect("written");
        let text: fn() -> String = || "text".to_owned();
        let pages = [("same.md", text), ("edited.md", text), ("missing.md", text)];
        let found: Vec<_> =
            drifted(&root, &pages).expect("readable").into_iter().map(|(path, _)| path).collect();
        fs::remove_dir_all(&root).expect("removed");
        assert_eq!(found, ["edited.md", "missing.md"]);
    }
}
