//! A collection of objects as the API server has it: listed once, then watched; faults are told once and waited out.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use kube::core::Status;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

/// How long until the next try after a failure: twice as long after each, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// A watch that breaks again within this was not resumed.
const RESUMED_AFTER: Duration = Duration::from_secs(30);
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
const GONE: u16 = 410;

/// The objects of one kind, each kept as what `read` makes of it.
pub(crate) struct Collection<K, V> {
    /// What is watched, in words.
    what: String,
    events: BoxStream<'static, Result<Event<K>, watcher::Error>>,
    /// Not `StreamBackoff` of kube: the event that begins a list resets it, so where lists fail it never grows.
    delays: ExponentialBackoff,
    retry_at: Option<Instant>,
    read: fn(K) -> V,
    objects: BTreeMap<Key, V>,
    /// Those of a list that is not yet whole.
    listed: BTreeMap<Key, V>,
    state: State,
    answered: bool,
}

/// Namespace and name.
pub(crate) type Key = (String, String);

/// What an event changed.
#[derive(Debug, PartialEq)]
pub(crate) enum Change<V> {
    /// Nothing that anybody reads.
    Nothing,
    /// Any of the objects, or how well they are known.
    Any,
    /// This object came or changed.
    Set(Key),
    /// This object went.
    Gone(Key, V),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not listed yet, and nothing is wrong.
    New,
    /// What is known is what there is.
    InStep,
    /// The watch broke at that time and is resumed, as watches now and then are. Nothing tells that it was, until the next event.
    Resuming(Instant),
    /// It is not, for this reason.
    Failing(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    NotInstalled,
    Forbidden,
    Other,
}

impl<K, V> Collection<K, V>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    pub(crate) fn new(what: String, api: Api<K>, config: watcher::Config, read: fn(K) -> V) -> Self {
        Self {
            what,
            events: watcher(api, config).boxed(),
            delays: delays(),
            retry_at: None,
            read,
            objects: BTreeMap::new(),
            listed: BTreeMap::new(),
            state: State::New,
            answered: false,
        }
    }

    /// The same with another selection: what was known stays until the new list is whole.
    pub(crate) fn select(&mut self, api: Api<K>, config: watcher::Config) {
        self.events = watcher(api, config).boxed();
        self.retry_at = None;
        self.listed.clear();
    }

    /// What is known.
    pub(crate) fn objects(&self) -> &BTreeMap<Key, V> {
        &self.objects
    }

    /// Those of a namespace.
    pub(crate) fn of_namespace<'s>(&'s self, namespace: &'s str) -> impl Iterator<Item = &'s V> {
        let there = self.objects.range((namespace.to_owned(), String::new())..);
        there.take_while(move |((other, _), _)| other == namespace).map(|(_, object)| object)
    }

    /// Whether it was asked for, with whatever outcome.
    pub(crate) fn is_tried(&self) -> bool {
        self.state != State::New
    }

    /// Whether the API server has ever answered, with the objects or with why there are none.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered
    }

    /// Whether it cannot be read now; what is not installed is read: there is none.
    pub(crate) fn is_failing(&self) -> bool {
        matches!(self.state, State::Failing(Failure::Forbidden | Failure::Other))
    }

    /// Waits for the next event.
    pub(crate) async fn changed(&mut self) -> Change<V> {
        if let Some(at) = self.retry_at {
            sleep_until(at).await;
            self.retry_at = None;
        }
        match self.events.next().await {
            Some(Ok(event)) => self.take(event),
            Some(Err(error)) => self.fail(&error),
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, event: Event<K>) -> Change<V> {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                self.listed.insert(key(&object), (self.read)(object));
            }
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.listed);
                self.recover();
                return Change::Any;
            }
            Event::Apply(object) => {
                let key = key(&object);
                self.objects.insert(key.clone(), (self.read)(object));
                self.recover();
                return Change::Set(key);
            }
            Event::Delete(object) => {
                let key = key(&object);
                let gone = self.objects.remove(&key);
                self.recover();
                return gone.map_or(Change::Nothing, |gone| Change::Gone(key, gone));
            }
        }
        Change::Nothing
    }

    /// Whether nothing failed lately.
    fn is_sound(&self) -> bool {
        match self.state {
            State::InStep => true,
            State::Resuming(since) => since.elapsed() > RESUMED_AFTER,
            State::New | State::Failing(_) => false,
        }
    }

    fn recover(&mut self) {
        if let State::Failing(_) = self.state {
            tracing::info!("{}: read again", self.what);
        }
        self.state = State::InStep;
        self.answered = true;
        self.delays = delays();
    }

    fn fail(&mut self, error: &watcher::Error) -> Change<V> {
        self.retry_at = self.delays.next().map(|delay| Instant::now() + delay);
        let failure = match status(error) {
            // The watch is older than what the API server remembers: the next list puts it right.
            Some(status) if status.code == GONE => return Change::Nothing,
            Some(status) if status.code == NOT_FOUND => Failure::NotInstalled,
            Some(status) if status.code == FORBIDDEN => Failure::Forbidden,
            _ => Failure::Other,
        };
        if matches!(error, watcher::Error::WatchFailed(_)) && self.is_sound() {
            self.state = State::Resuming(Instant::now());
            return Change::Nothing;
        }
        let first = self.state != State::Failing(failure.clone());
        if first {
            let what = &self.what;
            match failure {
                Failure::NotInstalled => {
                    tracing::info!("{what}: not installed in this cluster; taken for none");
                }
                Failure::Forbidden => {
                    let said = status(error).map(|status| status.message.as_str()).unwrap_or_default();
                    tracing::error!("{what}: RBAC denies them: {said}; allow get, list and watch");
                }
                Failure::Other => {
                    tracing::warn!("{what}: {}; what is known stays in force", Chain(error));
                }
            }
        }
        if failure == Failure::NotInstalled {
            self.objects.clear();
        }
        self.answered |= failure != Failure::Other;
        self.state = State::Failing(failure);
        if first { Change::Any } else { Change::Nothing }
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// What the API server itself said, where it did.
fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// An error and what it comes from, each once.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut said = self.0.to_string();
        let mut source = self.0.source();
        while let Some(error) = source {
            let next = error.to_string();
            if !said.contains(&next) {
                said = format!("{said}: {next}");
            }
            source = error.source();
        }
        f.write_str(&said)
    }
}

fn delays() -> ExponentialBackoff {
    let (min, max) = RETRY;
    ExponentialBuilder::new()
        .with_min_delay(min)
        .with_max_delay(max)
        .with_jitter()
        .without_max_times()
        .build()
}
