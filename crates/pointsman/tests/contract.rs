//! The command line from outside: exit codes, and what is printed where.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is a failure")]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

const POOL: &str = "\
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: NAME
  annotations:
    ANNOTATION
spec:
  selector: {matchLabels: {app: vllm}}
  targetPorts: [{number: 8000}]
";
const SOUND: &str = "inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE";

/// A file of its own for each test.
struct File(PathBuf);

impl File {
    fn new(test: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("pointsman-{test}-{}.yaml", std::process::id()));
        fs::write(&path, text).unwrap();
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn pointsman(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pointsman")).args(arguments).output().unwrap()
}

fn pool(name: &str, annotation: &str) -> String {
    POOL.replace("NAME", name).replace("ANNOTATION", annotation)
}

fn check(test: &str, text: &str) -> (i32, String) {
    let file = File::new(test, text);
    let output = pointsman(&["check", "-f", file.path()]);
    let printed = String::from_utf8(output.stdout).unwrap().replace(file.path(), "FILE");
    (output.status.code().unwrap(), printed)
}

/// The exit code and stderr of an `up` that does not start.
fn up(arguments: &[&str]) -> (i32, String) {
    let all = [&["up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"], arguments].concat();
    let output = pointsman(&all);
    assert!(output.stdout.is_empty());
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_sound_file_is_0_with_each_setting_and_its_origin() {
    let (code, printed) = check("sound", &pool("p", SOUND));
    assert_eq!(code, 0, "{printed}");
    assert!(printed.contains("routing-strategy = PREFIX_CACHE (annotation FILE:6:53)"), "{printed}");
    assert!(printed.contains("queue-ttl = 30s (default)"), "{printed}");
}

#[test]
fn a_bad_value_is_1_with_place_expectation_and_what_is_used() {
    let (code, printed) =
        check("value", &pool("p", "inference-epp-env.networking.x-k8s.io/queue-ttl: \"5\""));
    assert_eq!(code, 1);
    let fault = printed.lines().last().unwrap();
    assert!(fault.starts_with("FILE:6:54: inference-epp-env.networking.x-k8s.io/queue-ttl: "), "{fault}");
    assert!(fault.contains("; expected ") && fault.ends_with("; using 30s (default)"), "{fault}");
}

#[test]
fn an_unknown_key_is_1_and_names_the_nearest() {
    let (code, printed) = check("key", &pool("p", "inference.networking.x-k8s.io/routing-strategi: DEFAULT"));
    assert_eq!(code, 1);
    assert!(printed.contains("expected inference.networking.x-k8s.io/routing-strategy;"), "{printed}");
}

#[test]
fn text_that_is_no_yaml_is_1_with_its_place() {
    let (code, printed) = check("yaml", "kind: InferencePool\nmetadata: [\n");
    assert_eq!(code, 1);
    assert!(printed.starts_with("FILE:"), "{printed}");
}

#[test]
fn a_file_that_cannot_be_read_is_2() {
    let output = pointsman(&["check", "-f", "/nonexistent.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nonexistent.yaml"));
}

#[test]
fn two_pools_are_sound_to_check_and_refused_by_up() {
    let text = format!("{}---\n{}", pool("one", SOUND), pool("two", SOUND));
    assert_eq!(check("two", &text).0, 0);
    let file = File::new("two-up", &text);
    let (code, told) = up(&["-f", file.path()]);
    assert_eq!(code, 2);
    assert!(told.contains("default/one") && told.contains("default/two"), "{told}");
}

#[test]
fn up_does_not_start_without_a_readable_file_a_pool_or_its_port() {
    let (code, told) = up(&["-f", "/nonexistent.yaml"]);
    assert!(code == 2 && told.contains("/nonexistent.yaml"), "{told}");
    let empty = File::new("empty", "");
    let (code, told) = up(&["-f", empty.path()]);
    assert!(code == 2 && told.contains("no InferencePool"), "{told}");
    let broken = File::new("broken", &pool("p", SOUND).replace("targetPorts", "targetPort"));
    let (code, told) = up(&["-f", broken.path()]);
    assert!(code == 2 && told.contains("targetPort"), "{told}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = pointsman(&["up", "--listen", &address]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && told.contains(&address), "{told}");
}

#[test]
fn a_flag_that_makes_no_sense_is_2() {
    for flags in [["--endpoint", "nowhere"], ["--drain", "5"], ["--sim", "many"], ["--nonsense", "1"]] {
        assert_eq!(up(&flags).0, 2, "{flags:?}");
    }
    let output =
        pointsman(&["up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log", "loud=noise"]);
    assert_eq!(output.status.code(), Some(2));
}
