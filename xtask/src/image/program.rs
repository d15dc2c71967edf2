//! The program without shared libraries: it runs where nothing else is.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use object::Endianness;
use object::elf::{DT_NEEDED, EM_X86_64, FileHeader64, PT_INTERP};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};

use super::NAME;
use crate::process::must_succeed;

/// What rustc is told beyond the profile; the Dockerfile says the same.
const STATIC: [&str; 4] = ["-C", "target-feature=+crt-static", "-C", "strip=debuginfo"];

/// Compiles the program of a profile as `to`.
///
/// # Errors
/// It does not compile, or glibc's libc.a is missing (Debian: libc6-dev).
pub(super) fn build(root: &Path, profile: &str, to: &Path) -> anyhow::Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root).args(["rustc", "--locked", "--profile", profile]);
    cargo.args(["--package", NAME, "--bin", NAME, "--"]).args(STATIC);
    // Not where cargo would have it: target/PROFILE/pointsman stays the usual one, which tests may be running.
    cargo.arg("--emit").arg(format!("link={}", to.display()));
    must_succeed(&mut cargo)
}

/// Fails unless the kernel of an x86_64 Linux can start it with no other file there.
///
/// # Errors
/// Says what it is instead, or which library it wants.
pub(super) fn check_static(program: &[u8]) -> anyhow::Result<()> {
    let header = FileHeader64::<Endianness>::parse(program).context("it is no ELF file of 64 bits")?;
    let endian = header.endian()?;
    let machine = header.e_machine(endian);
    ensure!(machine == EM_X86_64, "it is for machine {machine} of ELF; make the image on x86_64 Linux");
    for segment in header.program_headers(endian, program)? {
        if let Some(interpreter) = segment.interpreter(endian, program)? {
            bail!("it is not static: it wants {}", String::from_utf8_lossy(interpreter));
        }
        ensure!(segment.p_type(endian) != PT_INTERP, "it is not static: it wants an interpreter");
        let dynamic = segment.dynamic(endian, program)?.unwrap_or_default();
        let libraries = dynamic.iter().filter(|entry| entry.tag(endian) == DT_NEEDED).count();
        ensure!(libraries == 0, "it is not static: it wants {libraries} shared libraries");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_wants_shared_libraries_is_refused() {
        let this = std::fs::read(std::env::current_exe().expect("this program")).expect("readable");
        let error = check_static(&this).expect_err("tests are linked dynamically");
        assert!(format!("{error:#}").contains("it wants /lib"), "{error:#}");
    }

    #[test]
    fn the_dockerfile_compiles_the_same_program() {
        let dockerfile = include_str!("../../../Dockerfile");
        assert!(dockerfile.contains(&STATIC.join(" ")), "expected {}", STATIC.join(" "));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF"] {
            check_static(bytes).expect_err("no program");
        }
    }
}
