//! What `pointsman check` says: the settings of each pool and where they come from, then every fault.

use std::fmt;

use crate::declared::Declared;
use crate::fault::{Fault, Severity};
use crate::manifest::InferencePool;
use crate::policy::{Origin, PoolPolicy};
use crate::settings::SETTINGS;

/// The lines of a check. Prints as settings, a blank line, faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `POOL namespace/name (version)` and below it `  key = value (origin)` for each setting, pool by pool.
    pub settings: Vec<String>,
    /// Faults and notes over all files, in the order of positions.
    pub faults: Vec<Fault>,
}

/// Judges all that was declared, annotations included.
#[must_use]
pub fn report(declared: &Declared) -> Report {
    let mut report = Report { settings: Vec::new(), faults: declared.faults.clone() };
    for pool in &declared.pools {
        report.add(pool);
    }
    report.faults.sort_by(|one, other| one.position.cmp(&other.position));
    report
}

impl Report {
    /// Whether nothing is wrong; notes are not wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.iter().all(|fault| fault.severity == Severity::Note)
    }

    fn add(&mut self, pool: &InferencePool) {
        self.settings.push(format!("POOL {} ({})", pool.id, pool.version));
        let resolved = PoolPolicy::resolve(&pool.annotations, None);
        for (definition, setting) in SETTINGS.iter().zip(&resolved.settings) {
            let origin = match (setting.origin, pool.annotations.get(setting.key)) {
                (Origin::Annotation, Some(annotation)) => format!("annotation {}", annotation.value_position),
                _ => "default".to_owned(),
            };
            self.settings.push(format!(
                "  {} = {} ({origin})",
                setting.key,
                definition.in_words(&resolved.policy)
            ));
        }
        self.faults.extend(resolved.faults);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.settings {
            writeln!(f, "{line}")?;
        }
        if !self.settings.is_empty() && !self.faults.is_empty() {
            writeln!(f)?;
        }
        for fault in &self.faults {
            writeln!(f, "{fault}")?;
        }
        Ok(())
    }
}
