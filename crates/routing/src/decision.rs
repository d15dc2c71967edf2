//! The decision: filter, price, rank; and what it was based on, as data.

use endpoints::{Load, LoadStanding, Serving, Snapshot};
use pool::{PoolPolicy, RoutingStrategy};
use smallvec::SmallVec;

use crate::cost::{Cost, WorstKnown, adapter_tokens, matched_tokens};
use crate::prefix::PrefixIndex;

/// Costs this close are the same: estimates are not that exact, and equal endpoints are to share.
const TIE_TOKENS: u64 = 64;

/// What a decision needs to know of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// The model that the endpoint will be asked for, after any rewriting.
    pub model: Option<&'a str>,
    /// The prompt as [`block_hashes`](crate::block_hashes) under the policy in force; empty where nothing is to match.
    pub blocks: &'a [u64],
    /// Estimated length of the whole prompt.
    pub prompt_tokens: u32,
    /// Which entries serve the model, by their own lists. Entries whose list has it not are no candidates,
    /// unless nobody's has it.
    pub serving: Option<Serving<'a>>,
    /// Which entries may be picked, one for each entry of the snapshot (those past its end may not); none = all.
    pub subset: Option<&'a [bool]>,
}

/// What is known at the moment of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The endpoints.
    pub snapshot: &'a Snapshot,
    /// Their loads, by [`Snapshot::read_loads`]; in entry order, and as many.
    pub loads: &'a [Load],
    /// The policy in force.
    pub policy: &'a PoolPolicy,
    /// Who holds which prompt prefixes; read under `PREFIX_CACHE` alone.
    pub index: &'a PrefixIndex,
}

/// Where a request goes, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Best first: the pick, then the fallbacks. At least one, each entry once.
    pub ranked: SmallVec<[Ranked; 3]>,
    /// What told the pick apart.
    pub reason: PickReason,
    /// How many endpoints could have been picked.
    pub candidates: u32,
}

/// One endpoint as the decision saw it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Index into the snapshot's entries.
    pub entry: u32,
    /// Leading blocks of the prompt that it is known to hold.
    pub matched_blocks: u32,
    /// The estimated work ahead of the request, by scorer.
    pub cost: Cost,
    /// The load seen.
    pub load: Load,
}

/// What told the pick apart from other candidates; the first that holds, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PickReason {
    /// There was no other candidate.
    Only,
    /// It holds more of the prompt than another candidate.
    Prefix,
    /// The adapter costs less on it than on another candidate.
    Adapter,
    /// Load, or its turn among equals.
    Load,
}

/// Buffers that decisions reuse. What is in them does not change a decision.
#[derive(Debug, Default)]
pub struct Scratch {
    matched: Vec<u32>,
    candidates: Vec<Candidate>,
    ranking: Vec<(RankKey, Candidate)>,
}

/// One candidate, as the scorers fill it in. Costs in prompt tokens.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    entry: u32,
    matched_blocks: u32,
    uncached: u32,
    adapter: u32,
    unknown: u64,
    total: u64,
}

/// Smaller is better: total cost (that of the cheapest where it ties), latest booking, shuffled entry.
type RankKey = (u64, u64, u64);

/// Ranks the endpoints for a request: the cheapest first, at most `fallbacks_max` after it. `None` if there is no
/// candidate at all.
///
/// - Endpoints left out after failures are candidates only when nobody else is.
/// - Costs within 64 tokens of the smallest are equal: first the least recently booked, then by `seed`.
#[must_use]
pub fn decide(
    request: &Request<'_>,
    known: &Known<'_>,
    fallbacks_max: usize,
    seed: u64,
    scratch: &mut Scratch,
) -> Option<Decision> {
    let Scratch { matched, candidates, ranking } = scratch;
    filter(request, known, candidates);
    if known.policy.routing_strategy == RoutingStrategy::PrefixCache {
        known.index.matches(request.blocks, matched);
        score_prefix(known, matched, candidates);
    }
    if let Some(model) = request.model.filter(|_| known.snapshot.reports_lora) {
        score_adapter(known, model, candidates);
    }
    if known.loads.iter().any(|load| load.standing == LoadStanding::Unknown) {
        score_unknown(known.loads, candidates);
    }

    rank(candidates, known.loads, fallbacks_max.saturating_add(1), seed, ranking);
    let (_, pick) = ranking.first()?;
    Some(Decision {
        reason: reason(candidates, pick),
        ranked: ranking.iter().map(|(_, candidate)| candidate.ranked(known.loads)).collect(),
        candidates: candidates.len() as u32,
    })
}

impl PickReason {
    /// All reasons, for whoever makes a metric family of them.
    pub const ALL: [Self; 4] = [Self::Only, Self::Prefix, Self::Adapter, Self::Load];

    /// The word for labels and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::Prefix => "prefix",
            Self::Adapter => "adapter",
            Self::Load => "load",
        }
    }
}

impl Candidate {
    /// An entry priced by its load, as if it held nothing of the prompt.
    #[inline]
    fn new(entry: usize, load: &Load, prompt_tokens: u32) -> Self {
        let total = Cost::of_load(load).total() + u64::from(prompt_tokens);
        Self {
            entry: entry as u32,
            matched_blocks: 0,
            uncached: prompt_tokens,
            adapter: 0,
            unknown: 0,
            total,
        }
    }

    fn ranked(&self, loads: &[Load]) -> Ranked {
        let load = loads[self.entry as usize];
        let cost = Cost {
            uncached: self.uncached.into(),
            adapter: self.adapter.into(),
            unknown: self.unknown,
            ..Cost::of_load(&load)
        };
        debug_assert_eq!(cost.total(), self.total, "the scorers and the reasons given agree");
        Ranked { entry: self.entry, matched_blocks: self.matched_blocks, cost, load }
    }
}

/// Who may be picked, priced by load. Those left out after failures only if they are all there is.
fn filter(request: &Request<'_>, known: &Known<'_>, candidates: &mut Vec<Candidate>) {
    let serving = request.serving.filter(|serving| serving.models_differ && !serving.nobody());
    let admitted = |entry: usize| {
        request.subset.is_none_or(|subset| subset.get(entry).copied().unwrap_or(false))
            && serving.is_none_or(|serving| !serving.excludes(entry))
    };
    let loads = &known.loads[..known.loads.len().min(known.snapshot.entries.len())];
    for left_out in [false, true] {
        candidates.clear();
        candidates.reserve(loads.len());
        for (entry, load) in loads.iter().enumerate() {
            if (load.standing == LoadStanding::LeftOut) == left_out && admitted(entry) {
                candidates.push(Candidate::new(entry, load, request.prompt_tokens));
            }
        }
        if !candidates.is_empty() {
            break;
        }
    }
}

/// Takes off what each holds of the prompt. What its slot held for another endpoint is not its own.
fn score_prefix(known: &Known<'_>, matched: &[u32], candidates: &mut [Candidate]) {
    let policy = &known.policy.prefix_cache;
    for candidate in candidates {
        let endpoint = &known.snapshot.entries[candidate.entry as usize].endpoint;
        let blocks = matched.get(endpoint.slot.index()).copied().unwrap_or(0);
        if blocks > 0 && known.index.owner(endpoint.slot) == Some(endpoint.id) {
            let saved = matched_tokens(blocks, policy).min(candidate.uncached.into()) as u32;
            candidate.matched_blocks = blocks;
            candidate.uncached -= saved;
            candidate.total -= u64::from(saved);
        }
    }
}

/// Adds what it takes to make the adapter active.
fn score_adapter(known: &Known<'_>, model: &str, candidates: &mut [Candidate]) {
    for candidate in candidates {
        candidate.adapter = adapter_tokens(&known.snapshot.entries[candidate.entry as usize], model);
        candidate.total += u64::from(candidate.adapter);
    }
}

/// Adds what it costs not to know the load.
fn score_unknown(loads: &[Load], candidates: &mut [Candidate]) {
    let load = |candidate: &Candidate| &loads[candidate.entry as usize];
    let worst = WorstKnown::of(candidates.iter().map(load));
    for candidate in candidates {
        if load(candidate).standing == LoadStanding::Unknown {
            candidate.unknown = worst.unknown_tokens(load(candidate));
            candidate.total += candidate.unknown;
        }
    }
}

/// Fills `ranking` with the first `places` of the order that [`decide`] promises.
fn rank(
    candidates: &[Candidate],
    loads: &[Load],
    places: usize,
    seed: u64,
    ranking: &mut Vec<(RankKey, Candidate)>,
) {
    // Dealt into as many hands as there are places, one candidate in each is no dearer than the dearest of the hands'
    // cheapest: so many are enough.
    let hands = (0..places.min(candidates.len())).map(|hand| candidates[hand..].iter().step_by(places));
    let minima = hands.map(|hand| hand.map(|candidate| candidate.total).min().unwrap_or_default());
    let (cheapest, enough) =
        minima.fold((u64::MAX, 0), |(cheapest, enough), total| (total.min(cheapest), total.max(enough)));
    let tied_to = cheapest.saturating_add(TIE_TOKENS);

    ranking.clear();
    for candidate in candidates.iter().filter(|candidate| candidate.total <= enough.max(tied_to)) {
        let total = if candidate.total <= tied_to { cheapest } else { candidate.total };
        let key = (total, loads[candidate.entry as usize].last_booked, shuffled(candidate.entry, seed));
        let place = ranking.partition_point(|(better, _)| *better < key);
        if place < places {
            ranking.truncate(places - 1);
            ranking.insert(place, (key, *candidate));
        }
    }
}

/// See [`PickReason`].
fn reason(candidates: &[Candidate], pick: &Candidate) -> PickReason {
    if candidates.len() == 1 {
        PickReason::Only
    } else if candidates.iter().any(|other| other.matched_blocks < pick.matched_blocks) {
        PickReason::Prefix
    } else if candidates.iter().any(|other| other.adapter > pick.adapter) {
        PickReason::Adapter
    } else {
        PickReason::Load
    }
}

/// A number for the entry, different for each and in another order with each seed (the finalizer of SplitMix64).
fn shuffled(entry: u32, seed: u64) -> u64 {
    let mut bits = seed ^ u64::from(entry).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
