//! Child processes: run to the end, succeed or say which command did not.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Runs to the end with this process's own output; an error names the command.
///
/// # Errors
/// The program is missing, or exits with anything but 0.
pub(crate) fn must_succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = unnamed(command).status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("{status}: {}", line_of(command));
    }
    Ok(())
}

/// Runs to the end and gives its stdout.
///
/// # Errors
/// The program is missing, exits with anything but 0, or prints what is not UTF-8.
pub(crate) fn stdout_of(command: &mut Command) -> anyhow::Result<String> {
    let output = unnamed(command).stderr(Stdio::inherit()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("{}: {}", output.status, line_of(command));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", line_of(command)))
}

/// Runs to the end, handing each line of stdout to `on_line` as it comes; true if it exited with 0.
///
/// # Errors
/// The program is missing, or its output cannot be read.
pub(crate) fn follow(command: &mut Command, mut on_line: impl FnMut(&str)) -> anyhow::Result<bool> {
    let mut child = unnamed(command).stdout(Stdio::piped()).spawn().with_context(|| cannot_start(command))?;
    let stdout = child.stdout.take().context("stdout was asked for and is not there")?;
    for line in BufReader::new(stdout).split(b'\n') {
        on_line(&String::from_utf8_lossy(&line?));
    }
    Ok(child.wait()?.success())
}

/// Without what `cargo run` tells of this very package. ring's build script runs again when that changes, and all that
/// needs ring after it: builds from here and builds by hand would undo each other.
fn unnamed(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of| name.to_string_lossy().starts_with(of)) {
            command.env_remove(name);
        }
    }
    command
}

/// The command as a person can paste it into a shell, run from its folder.
pub(crate) fn line_of(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let words = variables
        .map(|(name, value)| format!("{}={}", name.to_string_lossy(), quoted(value)))
        .chain([quoted(command.get_program())])
        .chain(command.get_args().map(quoted));
    words.collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`; is it installed?", command.get_program().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let mut command = Command::new("echo");
        command.env("NAME", "a b").args(["plain-1.0", "it's", "", "$x"]);
        assert_eq!(line_of(&command), r"NAME='a b' echo plain-1.0 'it'\''s' '' '$x'");
    }

    #[test]
    fn lines_come_in_order_and_a_failure_is_told() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; printf two; exit 3"]);
        assert!(!follow(&mut command, |line| lines.push(line.to_owned())).expect("sh runs"));
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn children_do_not_hear_of_this_package() {
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "cargo runs the tests");
        assert_eq!(stdout_of(&mut Command::new("env")).expect("it runs").matches("CARGO_PKG_").count(), 0);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = must_succeed(&mut Command::new("no-such-program-here")).expect_err("it is missing");
        assert!(format!("{error:#}").contains("no-such-program-here"), "{error:#}");
    }
}
