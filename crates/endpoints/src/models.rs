//! Which models the endpoints serve, by their own `GET /v1/models`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The most models of one endpoint.
pub const MODELS_MAX: usize = 4096;
/// A model list older than this is no longer known.
pub const MODELS_FRESH: Duration = Duration::from_secs(10);

/// One endpoint's answer to `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelList {
    /// When the answer came, since the epoch.
    pub at: Duration,
    /// The models, in the endpoint's order, ids unique.
    pub models: Arc<[ServedModel]>,
}

/// A model or LoRA adapter as an endpoint lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedModel {
    /// The name that requests use.
    pub id: Box<str>,
    /// The base model, for an adapter.
    pub parent: Option<Box<str>>,
    /// The whole JSON object as the endpoint wrote it.
    pub raw: Box<str>,
}

/// Why an answer to `GET /v1/models` is no model list.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// It is not the JSON it should be.
    #[error("/v1/models: {0}: expected {{\"data\":[{{\"id\":\"...\"}}]}}")]
    Json(#[from] serde_json::Error),
    /// It lists more than is taken in.
    #[error("/v1/models lists {models} models: at most {MODELS_MAX} are taken in")]
    TooMany {
        /// How many it lists.
        models: usize,
    },
}

/// Who serves one model. Entries are named by their index in the snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Serving<'a> {
    /// Every endpoint's list is known and at most [`MODELS_FRESH`] old, and there is an endpoint: what nobody lists,
    /// nobody serves.
    pub all_known: bool,
    /// The known lists are not all equal: it matters who is asked.
    pub models_differ: bool,
    listed: Option<&'a EntrySet>,
    without_list: &'a EntrySet,
}

impl ModelList {
    /// Reads an answer in OpenAI's shape that had come in whole at `at`. Of models with one id the first counts.
    ///
    /// # Errors
    /// [`ModelsError`].
    pub fn parse(body: &[u8], at: Duration) -> Result<Self, ModelsError> {
        let answer: Answer<'_> = serde_json::from_slice(body)?;
        if answer.data.len() > MODELS_MAX {
            return Err(ModelsError::TooMany { models: answer.data.len() });
        }
        let mut seen = HashSet::new();
        let mut models = Vec::with_capacity(answer.data.len());
        for raw in answer.data {
            let Named { id, parent } = serde_json::from_str(raw.get())?;
            if seen.insert(id.clone()) {
                let parent = parent.as_str().map(Box::from);
                models.push(ServedModel { id, parent, raw: raw.get().into() });
            }
        }
        Ok(Self { at, models: models.into() })
    }
}

/// The answer's list, its objects kept as they were written.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

/// What is read of one model's object.
#[derive(Deserialize)]
struct Named {
    id: Box<str>,
    /// A string or null in vLLM; whatever else it may be elsewhere is no reason to drop the model.
    #[serde(default)]
    parent: serde_json::Value,
}

impl Serving<'_> {
    /// Whether no known list has the model.
    #[must_use]
    pub fn nobody(&self) -> bool {
        self.listed.is_none()
    }

    /// Whether that entry's last list has the model.
    #[must_use]
    pub fn lists(&self, entry: usize) -> bool {
        self.listed.is_some_and(|listed| listed.contains(entry))
    }

    /// Whether that entry gave a list, and it has not the model. An entry whose list never came is not excluded.
    #[must_use]
    pub fn excludes(&self, entry: usize) -> bool {
        !self.lists(entry) && !self.without_list.contains(entry)
    }
}

/// A set of entries of one snapshot, one bit each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct EntrySet(Box<[u64]>);

impl EntrySet {
    fn with_room(entries: usize) -> Self {
        Self(vec![0; entries.div_ceil(64)].into())
    }

    fn insert(&mut self, entry: usize) {
        if let Some(word) = self.0.get_mut(entry / 64) {
            *word |= 1 << (entry % 64);
        }
    }

    fn contains(&self, entry: usize) -> bool {
        self.0.get(entry / 64).is_some_and(|word| word >> (entry % 64) & 1 == 1)
    }
}

/// Names to entries, computed when a list changes rather than when a request asks.
#[derive(Debug, Default)]
pub(crate) struct ModelTable {
    by_id: HashMap<Box<str>, EntrySet>,
    without_list: EntrySet,
    differ: bool,
}

impl ModelTable {
    /// The table over the entries' last lists, in entry order.
    pub(crate) fn new(lists: &[Option<&ModelList>]) -> Self {
        let mut by_id: HashMap<Box<str>, EntrySet> = HashMap::new();
        let mut without_list = EntrySet::with_room(lists.len());
        for (entry, list) in lists.iter().enumerate() {
            let Some(list) = list else {
                without_list.insert(entry);
                continue;
            };
            for model in &*list.models {
                let listed = by_id.entry(model.id.clone());
                listed.or_insert_with(|| EntrySet::with_room(lists.len())).insert(entry);
            }
        }
        let mut known = lists.iter().flatten();
        let differ = known.next().is_some_and(|first| {
            let ids: HashSet<&str> = first.models.iter().map(|model| &*model.id).collect();
            known.any(|list| {
                list.models.len() != ids.len() || !list.models.iter().all(|model| ids.contains(&*model.id))
            })
        });
        Self { by_id, without_list, differ }
    }

    pub(crate) fn serving(&self, model: &str, all_known: bool) -> Serving<'_> {
        Serving {
            all_known,
            models_differ: self.differ,
            listed: self.by_id.get(model),
            without_list: &self.without_list,
        }
    }
}

/// Whether two lists name the same models in the same order, whatever else their objects say (vLLM writes the time of
/// the answer into each).
pub(crate) fn same_models(a: Option<&ModelList>, b: Option<&ModelList>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.models.iter().map(|m| &m.id).eq(b.models.iter().map(|m| &m.id)),
        (None, None) => true,
        _ => false,
    }
}

/// The union of the lists, each id once, by the first list that has it.
pub(crate) fn merged<'a>(lists: impl Iterator<Item = &'a ModelList>) -> Vec<&'a ServedModel> {
    let mut seen = HashSet::new();
    lists.flat_map(|list| list.models.iter()).filter(|model| seen.insert(&*model.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<ModelList, ModelsError> {
        ModelList::parse(body.as_bytes(), Duration::ZERO)
    }

    #[test]
    fn an_answer_is_read_with_its_objects_as_written() {
        let adapter = r#"{"id": "lora", "parent":"base", "x":[1.0,  2]}"#;
        let body = format!(
            r#"{{"object":"list","data":[{{"id":"base","parent":null}},{adapter},{{"id":"base"}}]}}"#
        );
        let models = parse(&body).unwrap().models;
        let ids: Vec<_> = models.iter().map(|model| (&*model.id, model.parent.as_deref())).collect();
        assert_eq!(ids, [("base", None), ("lora", Some("base"))]);
        assert_eq!(&*models[1].raw, adapter);
    }

    #[test]
    fn escaped_ids_are_read_and_odd_parents_do_no_harm() {
        let models = parse(r#"{"data":[{"id":"a\u002fb","parent":{"id":1}}]}"#).unwrap().models;
        assert_eq!((&*models[0].id, &models[0].parent), ("a/b", &None));
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for body in ["", "[]", "<html>", "{}", r#"{"data":{}}"#, r#"{"data":[{"id":1}]}"#, r#"{"data":[7]}"#]
        {
            assert!(matches!(parse(body), Err(ModelsError::Json(_))), "{body}");
        }
        let deep = format!(r#"{{"data":{}"#, "[".repeat(100_000));
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn more_models_than_the_bound_are_refused() {
        let body = |models: usize| {
            let data: Vec<_> = (0..models).map(|id| format!(r#"{{"id":"{id}"}}"#)).collect();
            format!(r#"{{"data":[{}]}}"#, data.join(","))
        };
        assert_eq!(parse(&body(MODELS_MAX)).unwrap().models.len(), MODELS_MAX);
        assert!(
            matches!(parse(&body(MODELS_MAX + 1)), Err(ModelsError::TooMany { models }) if models == MODELS_MAX + 1)
        );
    }
}
