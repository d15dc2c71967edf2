//! `cargo xtask image`: the static program, an archive with it that Docker, containerd and Podman load, and its bill of
//! materials.
//!
//! Invariants
//! - The same program at the same revision makes the same bytes: no clock is read, and whatever has no order is sorted.
//! - Tests and other builds go on meanwhile: nothing in target/debug or target/release that has a name of its own changes.

mod archive;
mod materials;
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::process::stdout_of;

/// The profile of what is shipped.
pub(crate) const RELEASE: &str = "release";

const NAME: &str = "pointsman";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Of the whole workspace, so of the program too.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What image and bill of materials say of themselves.
struct About {
    /// The commit; `-dirty` behind it where tracked files differ.
    revision: String,
    /// When it was made, as far as anyone is told.
    created: Timestamp,
}

/// Makes `pointsman`, `pointsman-VERSION.tar` and `pointsman-VERSION.cdx.json` in target/image; of another profile than
/// `release` in a folder of its name there, so that nothing else is taken for a release.
///
/// # Errors
/// The program does not compile, is not static, or this is no git checkout.
pub(crate) fn run(root: &Path, profile: &str) -> anyhow::Result<()> {
    let mut folder = root.join("target/image");
    if profile != RELEASE {
        folder.push(profile);
    }
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let about = About::of(root)?;
    let path = folder.join(NAME);
    program::build(root, profile, &path)?;
    let program = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    program::check_static(&program)
        .with_context(|| format!("{} cannot go into the image", path.display()))?;

    let materials = materials::bill(root, &about, &program)?;
    let image = archive::archive(&about, &program)?;
    println!("{}  {}", path.display(), megabytes(&program));
    for (suffix, bytes) in [("tar", image), ("cdx.json", materials)] {
        let path = folder.join(format!("{NAME}-{VERSION}.{suffix}"));
        fs::write(&path, &bytes).with_context(|| format!("{} cannot be written", path.display()))?;
        println!("{}  {}", path.display(), megabytes(&bytes));
    }
    Ok(())
}

/// Where the image of a release is.
pub(crate) fn archive_path(root: &Path) -> PathBuf {
    root.join(format!("target/image/{NAME}-{VERSION}.tar"))
}

impl About {
    fn of(root: &Path) -> anyhow::Result<Self> {
        let git = |arguments: &[&str]| {
            let told = stdout_of(Command::new("git").current_dir(root).args(arguments));
            told.context("the image names the commit that it is made of; make it in a git checkout")
        };
        let revision = git(&["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])?;
        let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(seconds) => seconds,
            Err(_) => git(&["log", "-1", "--format=%ct"])?,
        };
        let created = time_of(seconds.trim())?;
        Ok(Self { revision: revision.trim().to_owned(), created })
    }

    /// Seconds since 1970, for archives.
    fn mtime(&self) -> u64 {
        self.created.as_second().unsigned_abs()
    }
}

fn time_of(seconds: &str) -> anyhow::Result<Timestamp> {
    let wrong = || format!("SOURCE_DATE_EPOCH is `{seconds}`; expected seconds since 1970, as in 1767225600");
    let time = Timestamp::from_second(seconds.parse().with_context(wrong)?).with_context(wrong)?;
    ensure!(time >= Timestamp::UNIX_EPOCH, wrong());
    Ok(time)
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn megabytes(bytes: &[u8]) -> String {
    format!("{}.{} MB", bytes.len() / 1_000_000, bytes.len() % 1_000_000 / 100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_as_others_write_it() {
        assert_eq!(time_of("1767225600").expect("seconds").to_string(), "2026-01-01T00:00:00Z");
        for wrong in ["", "-1", "now", "99999999999999"] {
            let error = time_of(wrong).expect_err(wrong);
            assert!(format!("{error:#}").contains("SOURCE_DATE_EPOCH"), "{error:#}");
        }
    }
}
