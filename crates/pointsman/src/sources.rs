//! Manifest files: read at the start, looked at again ten times a second.
//!
//! Looking (a stat of each file) instead of asking the kernel for events: it sees every way in which files change
//! (editors' renames, swapped symlinks of mounted ConfigMaps, network file systems), has no queue to overflow, and
//! costs microseconds. A file that has just changed is read once it has been at rest for one look, so that half a
//! write is not taken for a manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pool::{Fault, Manifest};

/// Between two looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A file that never rests is read anyway after so many looks.
const RESTLESS_LOOKS_MAX: u8 = 4;
/// A path that is gone for so many looks is told: a rename takes less.
const GONE_LOOKS: u32 = 4;
/// Largest manifest file, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Most manifest files in all.
const FILES_MAX: usize = 4096;
/// A folder is read for these, not below it.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// A file or folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// It cannot be read.
    #[error("{}: cannot be read: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    /// It is not YAML or JSON, or an object in it is broken.
    #[error("{0}")]
    Broken(Box<Fault>),
    /// Too large or too many.
    #[error("{}: {what}", path.display())]
    TooMuch { path: PathBuf, what: String },
}

/// The manifests of all files given with `-f`.
pub(crate) struct Sources {
    paths: Vec<PathBuf>,
    files: BTreeMap<PathBuf, File>,
    /// Paths that could not be read, and for how many looks.
    gone: BTreeMap<PathBuf, u32>,
}

struct File {
    /// What was looked at last.
    stamp: Option<Stamp>,
    /// What was read last: differs from `stamp` while a change waits for rest.
    read: Option<Stamp>,
    restless: u8,
    /// The last that parsed.
    manifest: Option<Manifest>,
}

/// Changes when a file changes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified_ns: i128,
}

impl Sources {
    /// Reads everything once.
    ///
    /// # Errors
    /// The first path that cannot be read, or file that does not parse.
    pub(crate) fn open(paths: &[PathBuf]) -> Result<Sources, SourceError> {
        let mut sources = Sources { paths: paths.to_vec(), files: BTreeMap::new(), gone: BTreeMap::new() };
        for path in list(paths)? {
            let stamp = Some(stamp(&path)?);
            let manifest = Some(read_whole(&path)?);
            sources.files.insert(path, File { stamp, read: stamp, restless: 0, manifest });
        }
        Ok(sources)
    }

    /// The manifests as they are now, in the order of their paths.
    pub(crate) fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.files.values().filter_map(|file| file.manifest.as_ref())
    }

    /// Whether no path was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Looks again. True when a manifest changed; what cannot be read or parsed changes nothing and is told in
    /// `faults`, once per change.
    pub(crate) fn look(&mut self, faults: &mut Vec<SourceError>) -> bool {
        let mut present = BTreeSet::new();
        for path in &self.paths {
            match list(std::slice::from_ref(path)) {
                Ok(files) => {
                    present.extend(files);
                    self.gone.remove(path);
                }
                // Gone for the moment (a rename under way, say) or for good: what it held stays.
                Err(error) => {
                    let looks = self.gone.entry(path.clone()).or_default();
                    *looks = looks.saturating_add(1);
                    if *looks == GONE_LOOKS {
                        faults.push(error);
                    }
                }
            }
        }
        let before = self.files.len();
        let gone = &self.gone;
        self.files.retain(|file, _| present.contains(file) || gone.keys().any(|path| file.starts_with(path)));
        let mut changed = self.files.len() != before;
        for path in present {
            let file = self.files.entry(path.clone()).or_insert_with(File::unread);
            changed |= file.look(&path, faults);
        }
        changed
    }
}

impl File {
    fn unread() -> File {
        File { stamp: None, read: None, restless: 0, manifest: None }
    }

    fn look(&mut self, path: &Path, faults: &mut Vec<SourceError>) -> bool {
        let Ok(stamp) = stamp(path) else { return false };
        let at_rest = self.stamp == Some(stamp);
        self.stamp = Some(stamp);
        if self.read == Some(stamp) {
            return false;
        }
        self.restless += 1;
        if !at_rest && self.restless < RESTLESS_LOOKS_MAX {
            return false;
        }
        self.restless = 0;
        self.read = Some(stamp);
        match read_whole(path) {
            Ok(manifest) => {
                self.manifest = Some(manifest);
                true
            }
            Err(error) => {
                faults.push(error);
                false
            }
        }
    }
}

/// Reads everything that `paths` stand for, each file for itself.
pub(crate) fn read_each(paths: &[PathBuf]) -> Vec<Result<Manifest, SourceError>> {
    paths
        .iter()
        .flat_map(|path| match list(std::slice::from_ref(path)) {
            Ok(files) => files.iter().map(|file| read(file)).collect(),
            Err(error) => vec![Err(error)],
        })
        .collect()
}

/// The files that `paths` stand for.
fn list(paths: &[PathBuf]) -> Result<Vec<PathBuf>, SourceError> {
    let mut files = Vec::new();
    for path in paths {
        let unreadable = |error| SourceError::Unreadable { path: path.clone(), error };
        if !fs::metadata(path).map_err(unreadable)?.is_dir() {
            files.push(path.clone());
            continue;
        }
        for entry in fs::read_dir(path).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            if is_manifest(&file) && file.is_file() {
                files.push(file);
            }
        }
        if files.len() > FILES_MAX {
            let what = format!("holds more than {FILES_MAX} manifest files");
            return Err(SourceError::TooMuch { path: path.clone(), what });
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
}

fn stamp(path: &Path) -> Result<Stamp, SourceError> {
    let metadata =
        fs::metadata(path).map_err(|error| SourceError::Unreadable { path: path.to_owned(), error })?;
    Ok(Stamp {
        inode: metadata.ino(),
        bytes: metadata.len(),
        modified_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
    })
}

/// A file with a broken object is broken as a whole: half of it must not come in force.
fn read_whole(path: &Path) -> Result<Manifest, SourceError> {
    let manifest = read(path)?;
    match manifest.faults.iter().find(|fault| fault.kind.leaves_out()) {
        Some(fault) => Err(SourceError::Broken(Box::new(fault.clone()))),
        None => Ok(manifest),
    }
}

fn read(path: &Path) -> Result<Manifest, SourceError> {
    let unreadable = |error| SourceError::Unreadable { path: path.to_owned(), error };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let what = format!("has more than {FILE_BYTES_MAX} bytes");
        return Err(SourceError::TooMuch { path: path.to_owned(), what });
    }
    pool::parse(&path.to_string_lossy(), &text).map_err(|unparsable| SourceError::Broken(unparsable.fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: NAME}\n\
        spec: {selector: {matchLabels: {app: vllm}}, targetPorts: [{number: 8000}]}\n";

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("pointsman-sources-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.0.join(file), text).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pools(sources: &Sources) -> Vec<String> {
        sources.manifests().flat_map(|manifest| &manifest.pools).map(|pool| pool.id.name.clone()).collect()
    }

    /// Looks until a change shows, as the watching task does.
    fn look(sources: &mut Sources) -> (bool, Vec<SourceError>) {
        let mut faults = Vec::new();
        let changed = (0..RESTLESS_LOOKS_MAX).any(|_| sources.look(&mut faults));
        (changed, faults)
    }

    #[test]
    fn a_folder_is_read_for_manifests_and_nothing_else() {
        let folder = Folder::new("folder");
        for (number, file) in
            ["a.yaml", "b.yml", "c.json", ".d.yaml", "e.txt", "f.yaml~"].into_iter().enumerate()
        {
            folder.write(file, &POOL.replace("NAME", &format!("pool-{number}")));
        }
        fs::create_dir(folder.0.join("below")).unwrap();
        folder.write("below/g.yaml", POOL);
        let sources = Sources::open(std::slice::from_ref(&folder.0)).unwrap();
        assert_eq!(pools(&sources), ["pool-0", "pool-1", "pool-2"]);
    }

    #[test]
    fn a_change_is_taken_and_a_broken_one_changes_nothing_and_is_told_once() {
        let folder = Folder::new("change");
        folder.write("p.yaml", &POOL.replace("NAME", "one"));
        let mut sources = Sources::open(std::slice::from_ref(&folder.0)).unwrap();
        assert!(!look(&mut sources).0);
        folder.write("p.yaml", &POOL.replace("NAME", "another"));
        assert!(look(&mut sources).0);
        assert_eq!(pools(&sources), ["another"]);
        folder.write("p.yaml", "kind: [");
        let (changed, faults) = look(&mut sources);
        assert!(!changed && faults.len() == 1, "{faults:?}");
        assert_eq!(look(&mut sources).1.len(), 0);
        assert_eq!(pools(&sources), ["another"]);
    }

    #[test]
    fn a_file_that_vanishes_from_a_folder_takes_its_objects_along_but_a_named_one_does_not() {
        let folder = Folder::new("vanish");
        folder.write("a.yaml", &POOL.replace("NAME", "a"));
        folder.write("b.yaml", &POOL.replace("NAME", "b"));
        let mut all = Sources::open(std::slice::from_ref(&folder.0)).unwrap();
        let mut named = Sources::open(&[folder.0.join("a.yaml")]).unwrap();
        fs::remove_file(folder.0.join("a.yaml")).unwrap();
        assert!(look(&mut all).0);
        assert_eq!(pools(&all), ["b"]);
        let (changed, faults) = look(&mut named);
        assert!(!changed && faults.len() == 1, "{faults:?}");
        assert_eq!(look(&mut named).1.len(), 0);
        assert_eq!(pools(&named), ["a"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = Sources::open(&[PathBuf::from("/nonexistent/p.yaml")]).err().unwrap();
        assert!(error.to_string().starts_with("/nonexistent/p.yaml: cannot be read"), "{error}");
    }
}
