//! What the files given with `--file` declare, and what becomes of their changes.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use director::{Declaration, Director};
use pool::{Catalog, Declared, EndpointSpec, InferencePool, PoolId};

use crate::sources::{LOOK_EVERY, Sources};

/// The pool of those who give no manifest: default settings.
const DEFAULT_POOL: &str = "
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: default, namespace: default}
spec:
  selector: {matchLabels: {pool: default}}
  targetPorts: [{number: 8000}]
";

/// The files, and what was told of them.
pub(crate) struct Files {
    sources: Sources,
    wanted: Wanted,
    told: HashSet<String>,
    /// Endpoints besides those of the files.
    extra: Vec<EndpointSpec>,
}

/// Which pools of the files to serve.
pub(crate) enum Wanted {
    /// The only one that there is.
    Only,
    /// The one of that name.
    Named(PoolId),
    /// All, each asked for by its name.
    All,
}

impl Files {
    /// Reads the files; `wanted` says which pools to serve.
    ///
    /// # Errors
    /// A file cannot be read or parsed, or it is not clear which pool to serve.
    pub(crate) fn open(paths: &[PathBuf], wanted: Wanted) -> anyhow::Result<Files> {
        let mut files =
            Files { sources: Sources::open(paths)?, wanted, told: HashSet::new(), extra: Vec::new() };
        let declared = declared(&files.sources)?;
        the_pools(&declared, &files.wanted)?;
        tell_unused(&declared, &mut files.told);
        Ok(files)
    }

    /// Adds endpoints to those of the files.
    pub(crate) fn add_endpoints(&mut self, endpoints: impl IntoIterator<Item = EndpointSpec>) {
        self.extra.extend(endpoints);
    }

    /// The first of the pools to serve.
    pub(crate) fn pool(&self) -> anyhow::Result<InferencePool> {
        let declared = declared(&self.sources)?;
        let pools = the_pools(&declared, &self.wanted)?;
        pools.first().copied().cloned().context("no InferencePool is declared")
    }

    /// Takes in force what the files declare now.
    pub(crate) fn declare(&self, director: &Arc<Director>) -> anyhow::Result<()> {
        let declared = declared(&self.sources)?;
        let pools = the_pools(&declared, &self.wanted)?;
        if !matches!(self.wanted, Wanted::All) {
            let of_one = |pool| director.declare(&declaration(pool, &declared, &self.extra));
            pools.into_iter().for_each(|pool| drop(of_one(pool)));
            return Ok(());
        }
        for pool in &pools {
            director.declare_beside(&declaration(pool, &declared, &self.extra));
        }
        for served in
            director.pools().iter().filter(|served| pools.iter().all(|pool| pool.id != *served.id()))
        {
            director.withdraw(served.id());
        }
        Ok(())
    }

    /// Takes changes in force, for ever, where there are files.
    pub(crate) async fn watch(mut self, director: Arc<Director>) {
        if self.sources.is_empty() {
            return;
        }
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            tokio::task::block_in_place(|| self.look(&director));
        }
    }

    fn look(&mut self, director: &Arc<Director>) {
        let refuse = |error: &anyhow::Error| {
            director.metrics().reload_failures.inc();
            tracing::error!("{error:#}; what ran keeps running");
        };
        let mut faults = Vec::new();
        let changed = self.sources.look(&mut faults);
        for fault in faults {
            refuse(&fault.into());
        }
        if changed && let Err(error) = self.take_in_force(director) {
            refuse(&error);
        }
    }

    fn take_in_force(&mut self, director: &Arc<Director>) -> anyhow::Result<()> {
        self.declare(director)?;
        tell_unused(&declared(&self.sources)?, &mut self.told);
        Ok(())
    }
}

/// All that the files declare; the default pool where there are no files.
fn declared(sources: &Sources) -> anyhow::Result<Declared> {
    if sources.is_empty() {
        return Ok(pool::assemble([&pool::parse("default", DEFAULT_POOL)?]));
    }
    Ok(pool::assemble(sources.manifests()))
}

/// Tells what of the files is not used, each fact once, wherever in its file it moves to: `told` are the facts of
/// the last time.
fn tell_unused(declared: &Declared, told: &mut HashSet<String>) {
    let mut facts = HashSet::new();
    for object in &declared.passed_over {
        let fact = format!("{} {}", object.kind, object.name);
        if !told.contains(&fact) {
            tracing::info!("{}: {fact} has no meaning here and is passed over", object.position);
        }
        facts.insert(fact);
    }
    for fault in &declared.faults {
        let fact = format!("{}: {}", fault.key, fault.what);
        if !told.contains(&fact) {
            tracing::warn!("{fault}");
        }
        facts.insert(fact);
    }
    *told = facts;
}

/// The pools to serve. Where nobody names one, nothing but the path could tell two pools' requests apart, and all have the
/// same path.
fn the_pools<'a>(declared: &'a Declared, wanted: &Wanted) -> anyhow::Result<Vec<&'a InferencePool>> {
    match (wanted, declared.pools.as_slice()) {
        (Wanted::Named(id), pools) => {
            let found = pools.iter().find(|pool| pool.id == *id);
            let missing = || format!("no InferencePool {id} is declared in the files given with --file");
            Ok(vec![found.with_context(missing)?])
        }
        (Wanted::All, pools) => Ok(pools.iter().collect()),
        (Wanted::Only, [pool]) => Ok(vec![pool]),
        (Wanted::Only, []) => bail!("no InferencePool is declared in the files given with --file"),
        (Wanted::Only, [first, second, ..]) => bail!(
            "two InferencePools would answer the same request: {} ({}) and {} ({}); run one process for each \
             (`epp` is told which by --pool-name)",
            first.id,
            first.position,
            second.id,
            second.position
        ),
    }
}

fn declaration(pool: &InferencePool, declared: &Declared, extra: &[EndpointSpec]) -> Declaration {
    let mut endpoints = pool.endpoints(&declared.slices);
    endpoints.extend_from_slice(extra);
    let catalog = Catalog::of(&pool.id, declared);
    Declaration { pool: pool.clone(), catalog, endpoints, pods: None }
}
