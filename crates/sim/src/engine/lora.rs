//! LoRA adapters: which are resident, and the history that the metrics page shows.

use std::{sync::Arc, time::Duration};

/// States of the adapters that the page remembers; the oldest is forgotten.
const STATES_MAX: usize = 64;

/// Adapters in the engine's slots, least recently used first.
#[derive(Debug)]
pub(super) struct Slots {
    resident: Vec<Arc<str>>,
    slots_max: usize,
}

/// What a request needs before it can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Residence {
    /// Its adapter is resident, or it uses none.
    Ready,
    /// A slot is free or can be freed: the adapter has to be loaded.
    Loadable,
    /// All slots are taken by adapters of running requests.
    Full,
}

impl Slots {
    /// `slots_max` empty slots.
    pub(super) fn new(slots_max: u32) -> Self {
        Self { resident: Vec::new(), slots_max: slots_max as usize }
    }

    /// What `adapter` needs while `running` adapters (each once) may not be evicted.
    pub(super) fn residence(&self, adapter: &Arc<str>, running: &[Arc<str>]) -> Residence {
        if self.resident.contains(adapter) {
            Residence::Ready
        } else if running.len() < self.slots_max {
            Residence::Loadable
        } else {
            Residence::Full
        }
    }

    /// Marks `adapter` as used now; evicts the least recently used that is not `running` when it has to be loaded.
    pub(super) fn take(&mut self, adapter: &Arc<str>, running: &[Arc<str>]) {
        if let Some(at) = self.resident.iter().position(|resident| resident == adapter) {
            self.resident.remove(at);
        } else if self.resident.len() >= self.slots_max
            && let Some(at) = self.resident.iter().position(|resident| !running.contains(resident))
        {
            self.resident.remove(at);
        }
        self.resident.push(adapter.clone());
    }
}

/// Which adapters ran and waited at one moment. vLLM prints each combination it has seen as a series of its own,
/// whose value is when it was last true; the newest series is the present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraState {
    /// Adapters of running requests, sorted.
    pub running: Vec<Arc<str>>,
    /// Adapters of waiting requests, sorted.
    pub waiting: Vec<Arc<str>>,
    /// When this was last so, since the engine began.
    pub at: Duration,
}

/// Puts `state` into `history`, in which each combination occurs once.
pub(super) fn remember(history: &mut Vec<LoraState>, state: LoraState) {
    if let Some(known) =
        history.iter_mut().find(|known| known.running == state.running && known.waiting == state.waiting)
    {
        known.at = state.at;
        return;
    }
    if history.len() == STATES_MAX
        && let Some(oldest) = (0..history.len()).min_by_key(|index| history[*index].at)
    {
        history.remove(oldest);
    }
    history.push(state);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Arc<str> {
        Arc::from(text)
    }

    #[test]
    fn the_least_recently_used_adapter_that_does_not_run_makes_room() {
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let mut slots = Slots::new(2);
        slots.take(&a, &[]);
        slots.take(&b, &[]);
        assert_eq!(slots.residence(&c, &[a.clone(), b.clone()]), Residence::Full);
        assert_eq!(slots.residence(&c, std::slice::from_ref(&a)), Residence::Loadable);
        slots.take(&c, std::slice::from_ref(&a));
        assert_eq!(slots.residence(&a, &[]), Residence::Ready);
        assert_eq!(slots.residence(&b, &[]), Residence::Loadable);
        slots.take(&b, &[]);
        assert_eq!(slots.residence(&a, &[]), Residence::Loadable, "a was used longest ago");
    }

    #[test]
    fn history_is_bounded_and_keeps_each_combination_once() {
        let mut history = Vec::new();
        let state = |running: &str, at| LoraState {
            running: vec![name(running)],
            waiting: Vec::new(),
            at: Duration::from_secs(at),
        };
        for at in 0..200 {
            remember(&mut history, state(&at.to_string(), at));
        }
        remember(&mut history, state("199", 300));
        assert_eq!(history.len(), STATES_MAX);
        assert_eq!(history.iter().map(|known| known.at.as_secs()).min(), Some(136));
        assert_eq!(history.iter().map(|known| known.at.as_secs()).max(), Some(300));
    }
}
