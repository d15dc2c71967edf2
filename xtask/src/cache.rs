//! What tests need installed, in one folder outside the checkout.
//!
//! Invariants
//! - A part is whole or is made again: its stamp is written last and holds all that decides what the part becomes.
//! - Two runs at once do not disturb each other: whoever makes a part holds its lock, the other waits and finds it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;

const STAMP: &str = ".made-from";

/// The folder of installed parts.
pub(crate) struct Cache {
    root: PathBuf,
}

/// Something to install.
pub(crate) struct Part<'a> {
    /// Its folder in the cache.
    pub(crate) name: &'static str,
    /// All that decides what it becomes: versions, scripts, the interpreter. Another recipe makes it anew.
    pub(crate) recipe: String,
    /// Makes it in the given folder, which is not there yet; the folder keeps its path.
    pub(crate) make: &'a dyn Fn(&Path) -> anyhow::Result<()>,
}

impl Cache {
    /// `POINTSMAN_CACHE`, else `pointsman` in `XDG_CACHE_HOME`, else `~/.cache/pointsman`.
    ///
    /// # Errors
    /// None of the variables is set, or the folder cannot be made.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("POINTSMAN_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|caches| caches.join("pointsman")))
            .or_else(|| set("HOME").map(|home| home.join(".cache/pointsman")))
            .context("HOME is not set; name a folder for installed parts with POINTSMAN_CACHE")?;
        Self::at(std::path::absolute(root)?)
    }

    fn at(root: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("{} cannot be made", root.display()))?;
        Ok(Self { root })
    }

    /// A path below the cache's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The part's folder, made if it is not there, not whole, or of another recipe.
    ///
    /// # Errors
    /// The lock, the folder or `make` fail.
    pub(crate) fn ensure(&self, part: &Part<'_>) -> anyhow::Result<PathBuf> {
        let folder = self.path(part.name);
        let lock = self.path(&format!("{}.lock", part.name));
        let lock = File::create(&lock).with_context(|| format!("{} cannot be opened", lock.display()))?;
        // Held until the file is closed, at the end of this function or of the process.
        lock.lock().with_context(|| format!("{} cannot be locked", part.name))?;
        let stamp = folder.join(STAMP);
        if fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == part.recipe) {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("{} cannot be removed", folder.display()))?;
        }
        println!("installing {}", folder.display());
        let begin = Instant::now();
        (part.make)(&folder).with_context(|| format!("{} was not installed", part.name))?;
        fs::write(&stamp, &part.recipe).with_context(|| format!("{} cannot be written", stamp.display()))?;
        println!("installed {} in {:.1} s", part.name, begin.elapsed().as_secs_f64());
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A cache of this test alone; removed when dropped.
    struct Scratch(Cache);

    impl Scratch {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("pointsman-cache-{name}-{}", std::process::id()));
            Self(Cache::at(folder).expect("a temporary folder"))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.root);
        }
    }

    #[test]
    fn a_part_is_made_once_for_each_recipe() {
        let scratch = Scratch::new("once");
        let made = Cell::new(0);
        let make = |folder: &Path| {
            made.set(made.get() + 1);
            Ok(fs::create_dir(folder)?)
        };
        for (recipe, times) in [("1.0", 1), ("1.0", 1), ("1.1", 2), ("1.0", 3)] {
            let part = Part { name: "part", recipe: recipe.to_owned(), make: &make };
            scratch.0.ensure(&part).expect("made");
            assert_eq!(made.get(), times, "{recipe}");
        }
    }

    #[test]
    fn a_part_that_was_interrupted_is_made_again_from_nothing() {
        let scratch = Scratch::new("interrupted");
        let interrupted = |folder: &Path| {
            fs::create_dir(folder)?;
            fs::write(folder.join("half"), "")?;
            anyhow::bail!("interrupted")
        };
        let part = Part { name: "part", recipe: "1.0".to_owned(), make: &interrupted };
        scratch.0.ensure(&part).expect_err("it was interrupted");
        let whole = |folder: &Path| Ok(fs::create_dir(folder)?);
        let folder = scratch.0.ensure(&Part { make: &whole, ..part }).expect("made");
        assert!(!folder.join("half").exists());
    }

    #[test]
    fn of_two_at_once_one_makes_the_part_and_the_other_waits_for_it() {
        let scratch = Scratch::new("two");
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let make = |folder: &Path| {
                        made.fetch_add(1, Ordering::SeqCst);
                        Ok(fs::create_dir(folder)?)
                    };
                    let part = Part { name: "part", recipe: "1.0".to_owned(), make: &make };
                    scratch.0.ensure(&part).expect("made or found");
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
