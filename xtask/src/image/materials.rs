//! The bill of materials: CycloneDX of exactly the crates that are linked into the program.
//!
//! `cargo tree` knows them with the features that the build uses: not what only tests need, nor what runs while compiling
//! (build scripts, procedural macros and what these use). Cargo.lock knows where they are from and their checksums.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use cyclonedx_bom::external_models::uri::Purl;
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::dependency::{Dependencies, Dependency};
use cyclonedx_bom::models::hash::{Hash, HashAlgorithm, HashValue, Hashes};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::metadata::Metadata;
use cyclonedx_bom::models::tool::Tools;
use cyclonedx_bom::prelude::{Bom, DateTime, SpdxExpression, SpecVersion, Validate as _};
use serde::Deserialize;

use super::{About, NAME, TARGET, VERSION, sha256};
use crate::process::stdout_of;

/// A crate by name and version.
type Id = (String, String);

/// What `cargo tree` tells of a crate.
#[derive(Debug, Default, PartialEq)]
struct Crate {
    license: String,
    needs: BTreeSet<Id>,
}

/// The part of Cargo.lock that is read here.
#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    /// None of a crate of this workspace.
    source: Option<String>,
    checksum: Option<String>,
}

/// The bill of the program, as JSON.
///
/// # Errors
/// `cargo tree` and Cargo.lock disagree, or a license is no SPDX expression.
pub(super) fn bill(root: &Path, about: &About, program: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root).args(["tree", "--locked", "--package", NAME, "--target", TARGET]);
    cargo.args(["--edges", "normal,no-proc-macro", "--prefix", "depth", "--format", "\t{p}\t{l}"]);
    let crates = crates(&stdout_of(&mut cargo)?)?;
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("Cargo.lock cannot be read")?;
    let lock: Lock = toml::from_str(&lock).context("Cargo.lock is not as expected")?;
    write(&crates, &lock, about, &sha256(program))
}

/// Reads lines of depth, crate and license; a crate's own dependencies follow it once, deeper by one.
fn crates(tree: &str) -> anyhow::Result<BTreeMap<Id, Crate>> {
    let mut crates: BTreeMap<Id, Crate> = BTreeMap::new();
    let mut above: Vec<Id> = Vec::new();
    for line in tree.lines() {
        let read = || {
            let mut columns = line.strip_suffix(" (*)").unwrap_or(line).split('\t');
            let depth = columns.next()?.parse::<usize>().ok()?;
            let (name, rest) = columns.next()?.split_once(" v")?;
            let version = rest.split(' ').next()?;
            Some((depth, (name.to_owned(), version.to_owned()), columns.next()?))
        };
        let (depth, id, license) =
            read().with_context(|| format!("cargo tree is not as expected: {line}"))?;
        ensure!(depth <= above.len(), "cargo tree skips a level: {line}");
        above.truncate(depth);
        if let Some(parent) = above.last() {
            crates.entry(parent.clone()).or_default().needs.insert(id.clone());
        }
        license.clone_into(&mut crates.entry(id.clone()).or_default().license);
        above.push(id);
    }
    Ok(crates)
}

fn write(crates: &BTreeMap<Id, Crate>, lock: &Lock, about: &About, program: &str) -> anyhow::Result<Vec<u8>> {
    let (mut parts, mut arrows, mut references) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
    for (id, of) in crates {
        let part = component(id, of, lock)?;
        references.insert(id, part.bom_ref.clone().unwrap_or_default());
        parts.insert(id, part);
    }
    for (id, of) in crates {
        let dependencies = of.needs.iter().map(|need| references[need].clone()).collect();
        arrows.push(Dependency { dependency_ref: references[id].clone(), dependencies });
    }
    let mut whole =
        parts.remove(&(NAME.to_owned(), VERSION.to_owned())).context("cargo tree has no pointsman")?;
    whole.component_type = Classification::Application;
    whole.hashes = Some(sha256_of(program));
    let tool = Component::new(Classification::Application, "cargo xtask image", VERSION, None);
    let metadata = Metadata {
        timestamp: Some(DateTime::try_from(about.created.to_string())?),
        tools: Some(Tools::Object { services: None, components: Some(Components(vec![tool])) }),
        component: Some(whole),
        ..Metadata::default()
    };
    let bom = Bom {
        // It would be another each time.
        serial_number: None,
        metadata: Some(metadata),
        components: Some(Components(parts.into_values().collect())),
        dependencies: Some(Dependencies(arrows)),
        ..Bom::default()
    };
    let judged = bom.validate_version(SpecVersion::V1_5);
    ensure!(judged.passed(), "the bill of materials is no CycloneDX: {judged:?}");
    let mut json = Vec::new();
    bom.output_as_json_v1_5(&mut json)?;
    json.push(b'\n');
    Ok(json)
}

fn component((name, version): &Id, of: &Crate, lock: &Lock) -> anyhow::Result<Component> {
    let locked = lock
        .package
        .iter()
        .find(|package| package.name == *name && package.version == *version)
        .with_context(|| format!("{name} {version} is not in Cargo.lock"))?;
    // Those of this workspace are not on crates.io, where others have their names.
    let kind = if locked.source.is_some() { "cargo" } else { "generic" };
    let url = Purl::new(kind, name, version)?;
    let mut component = Component::new(Classification::Library, name, version, Some(url.to_string()));
    component.purl = Some(url);
    component.hashes = locked.checksum.as_deref().map(sha256_of);
    let license = SpdxExpression::parse_lax(of.license.clone())
        .with_context(|| format!("the license of {name} {version} is `{}`", of.license))?;
    component.licenses = Some(Licenses(vec![LicenseChoice::Expression(license)]));
    Ok(component)
}

fn sha256_of(digest: &str) -> Hashes {
    Hashes(vec![Hash { alg: HashAlgorithm::SHA_256, content: HashValue(digest.to_owned()) }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Id {
        (name.to_owned(), "1.0.0".to_owned())
    }

    #[test]
    fn the_tree_is_read_with_what_each_crate_needs() {
        let tree = "0\tdoor v1.0.0 (/a b/door)\tMIT\n\
                    1\tlow v1.0.0\tMIT OR Apache-2.0\n\
                    2\tground v1.0.0\tISC\n\
                    1\tmid v1.0.0\tMIT\n\
                    2\tlow v1.0.0\tMIT OR Apache-2.0 (*)\n\
                    2\tground v1.0.0\tISC\n";
        let expected = [
            ("door", "MIT", vec!["low", "mid"]),
            ("low", "MIT OR Apache-2.0", vec!["ground"]),
            ("mid", "MIT", vec!["ground", "low"]),
            ("ground", "ISC", vec![]),
        ];
        let expected = expected.into_iter().map(|(name, license, needs)| {
            (id(name), Crate { license: license.to_owned(), needs: needs.into_iter().map(id).collect() })
        });
        assert_eq!(crates(tree).expect("as cargo prints it"), expected.collect());
    }

    #[test]
    fn a_tree_that_is_not_as_expected_is_shown() {
        for line in ["door v1.0.0\tMIT", "0\tdoor\tMIT", "1\tdoor v1.0.0\tMIT", "0\tdoor v1.0.0"] {
            let error = crates(line).expect_err(line);
            assert!(error.to_string().contains(line), "{error}");
        }
    }
}
