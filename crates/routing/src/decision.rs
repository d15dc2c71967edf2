//! The decision: filter, price, rank; and what it was based on, as data.

use endpoints::{Load, LoadStanding, Serving, Snapshot};
use pool::{PoolPolicy, RoutingStrategy};
use smallvec::SmallVec;

use crate::cost::{BYTES_PER_TOKEN, Cost, WorstKnown, adapter_tokens};
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
}

/// One candidate: what the scorers looked up for it, and the price they make with its load.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    entry: u32,
    matched_blocks: u32,
    adapter: u32,
    total: u64,
}

/// Smaller is better: total cost (that of the cheapest where it ties), latest booking, shuffled entry.
type RankKey = (u64, u64, u64);

/// What turns a candidate and its load into a [`Cost`]. The same for all candidates of a decision.
struct Pricing<'a> {
    known: &'a Known<'a>,
    prompt_tokens: u32,
    worst: WorstKnown,
}

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
    let Scratch { matched, candidates } = scratch;
    matched.clear();
    if known.policy.routing_strategy == RoutingStrategy::PrefixCache {
        known.index.matches(request.blocks, matched);
    }
    filter(request, known, candidates);
    look_up(request, known, matched, candidates);

    let pricing = Pricing::new(request, known, candidates);
    for candidate in &mut *candidates {
        candidate.total = pricing.cost(candidate).total();
    }
    let ranked = rank(candidates, known.loads, fallbacks_max.saturating_add(1), seed);
    Some(Decision {
        reason: reason(candidates, ranked.first()?),
        ranked: ranked.iter().map(|candidate| pricing.ranked(candidate)).collect(),
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

impl Pricing<'_> {
    fn new<'a>(request: &Request<'_>, known: &'a Known<'a>, candidates: &[Candidate]) -> Pricing<'a> {
        let loads = || candidates.iter().map(|candidate| &known.loads[candidate.entry as usize]);
        let mut worst = WorstKnown::default();
        if loads().any(|load| load.standing == LoadStanding::Unknown) {
            loads().for_each(|load| worst.see(load));
        }
        Pricing { known, prompt_tokens: request.prompt_tokens, worst }
    }

    #[inline]
    fn cost(&self, candidate: &Candidate) -> Cost {
        let matched_bytes =
            candidate.matched_blocks.saturating_mul(self.known.policy.prefix_cache.block_size_bytes);
        Cost {
            uncached: self.prompt_tokens.saturating_sub(matched_bytes / BYTES_PER_TOKEN),
            adapter: candidate.adapter,
            ..Cost::of_load(&self.known.loads[candidate.entry as usize], &self.worst)
        }
    }

    fn ranked(&self, candidate: &Candidate) -> Ranked {
        Ranked {
            entry: candidate.entry,
            matched_blocks: candidate.matched_blocks,
            cost: self.cost(candidate),
            load: self.known.loads[candidate.entry as usize],
        }
    }
}

/// Fills `candidates` with the entries that may be picked: those left out only if they are all there is.
fn filter(request: &Request<'_>, known: &Known<'_>, candidates: &mut Vec<Candidate>) {
    let serving = request.serving.filter(|serving| serving.models_differ && !serving.nobody());
    let allowed = |entry: usize| {
        request.subset.is_none_or(|subset| subset.get(entry).copied().unwrap_or(false))
            && serving.is_none_or(|serving| !serving.excludes(entry))
    };
    let mut collect = |left_out: bool| {
        let loads = known.loads.iter().take(known.snapshot.entries.len()).enumerate();
        let standing = loads.filter(|(_, load)| (load.standing == LoadStanding::LeftOut) == left_out);
        candidates.clear();
        candidates.extend(standing.filter(|&(entry, _)| allowed(entry)).map(|(entry, _)| Candidate {
            entry: entry as u32,
            matched_blocks: 0,
            adapter: 0,
            total: 0,
        }));
        candidates.is_empty()
    };
    if collect(false) {
        collect(true);
    }
}

/// Looks up what each candidate holds of the prompt, and what the adapter costs on it.
fn look_up(request: &Request<'_>, known: &Known<'_>, matched: &[u32], candidates: &mut [Candidate]) {
    let adapter = request.model.filter(|_| known.snapshot.reports_lora);
    for candidate in candidates {
        let entry = &known.snapshot.entries[candidate.entry as usize];
        let endpoint = &entry.endpoint;
        if let Some(&blocks) = matched.get(endpoint.slot.index())
            && known.index.owner(endpoint.slot) == Some(endpoint.id)
        {
            candidate.matched_blocks = blocks;
        }
        if let Some(model) = adapter {
            candidate.adapter = adapter_tokens(entry, model);
        }
    }
}

/// The first `places` of the order that [`decide`] promises.
fn rank(candidates: &[Candidate], loads: &[Load], places: usize, seed: u64) -> SmallVec<[Candidate; 3]> {
    let cheapest = candidates.iter().map(|candidate| candidate.total).min().unwrap_or_default();
    let mut ranked: SmallVec<[(RankKey, Candidate); 4]> = SmallVec::new();
    for &candidate in candidates {
        let total = if candidate.total <= cheapest + TIE_TOKENS { cheapest } else { candidate.total };
        if ranked.len() == places && ranked.last().is_some_and(|((worst, ..), _)| total > *worst) {
            continue;
        }
        let key = (total, loads[candidate.entry as usize].last_booked, shuffled(candidate.entry, seed));
        let place = ranked.partition_point(|(better, _)| *better < key);
        ranked.insert(place, (key, candidate));
        ranked.truncate(places);
    }
    ranked.into_iter().map(|(_, candidate)| candidate).collect()
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
