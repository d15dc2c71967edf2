//! The queue itself. Each operation takes logarithmic time in the number of flows of a band, and constant time in that of
//! requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use crate::list::List;
use crate::slab::{Kind, Slab};

/// How many flows whose first request cannot go now one dispatch passes over.
const PASSED_OVER_MAX: usize = 64;

/// What may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all that wait.
    pub capacity_bytes: u64,
    /// The longest wait, from arrival.
    pub ttl: Duration,
    /// How many may wait.
    pub waiting_max: usize,
}

/// What a request brings.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Higher goes first.
    pub priority: i64,
    /// Whose request it is: flows of one priority share by work.
    pub flow: &'a str,
    /// What it takes of the capacity.
    pub bytes: u64,
    /// What it takes of its flow's share; at least 1 is counted.
    pub work: u64,
}

/// Names a request that waits. One that left is never mistaken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    number: u32,
    arrival: u64,
}

/// A request that waits no more.
#[derive(Debug, PartialEq, Eq)]
pub struct Left<T> {
    /// What was given at its arrival.
    pub waiter: T,
    /// Its priority.
    pub priority: i64,
    /// How long it waited.
    pub waited: Duration,
}

/// Whether a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes.
    Go,
    /// It cannot go now; others may.
    NotThis,
    /// Nobody can go now.
    Nobody,
}

/// What waits at one priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// The priority.
    pub priority: i64,
    /// How many wait.
    pub waiting: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Requests that wait, each as a `T` that whoever waits listens to.
#[derive(Debug)]
pub struct Queue<T> {
    limits: Limits,
    requests: Slab<Request<T>>,
    /// By arrival; since all may wait equally long, by the end of their time as well.
    all: List,
    bands: BTreeMap<i64, BandState>,
    bytes: u64,
    arrivals: u64,
}

#[derive(Debug)]
struct Request<T> {
    waiter: T,
    priority: i64,
    flow: Arc<str>,
    bytes: u64,
    work: u64,
    at: Duration,
    arrival: u64,
}

#[derive(Debug)]
struct BandState {
    by_arrival: List,
    flows: HashMap<Arc<str>, Flow>,
    /// The flows, those that are furthest behind first; in a tie the one whose request came earlier.
    order: BTreeSet<Turn>,
    /// Where the band is: the finish of what went last, in work.
    finished: u64,
    waiting: usize,
    bytes: u64,
}

/// A flow's place in the order: when its first request would finish, had it its share all along.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    finish: u64,
    arrival: u64,
    flow: Arc<str>,
}

#[derive(Debug)]
struct Flow {
    requests: List,
    /// Where its first request begins, in work.
    start: u64,
    turn: Turn,
}

impl<T> Queue<T> {
    /// A queue in which nobody waits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            requests: Slab::new(),
            all: List::new(Kind::All),
            bands: BTreeMap::new(),
            bytes: 0,
            arrivals: 0,
        }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Bytes of all that wait.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What waits, the highest priority first.
    pub fn bands(&self) -> impl Iterator<Item = Band> + '_ {
        let bands = self.bands.iter().rev();
        bands.map(|(&priority, band)| Band { priority, waiting: band.waiting, bytes: band.bytes })
    }

    /// How many wait at `priority` or above.
    #[must_use]
    pub fn ahead(&self, priority: i64) -> usize {
        self.bands.range(priority..).map(|(_, band)| band.waiting).sum()
    }

    /// When the request arrived that waits longest.
    #[must_use]
    pub fn oldest(&self) -> Option<Duration> {
        self.requests.get(self.all.first()?).map(|request| request.at)
    }

    /// When the next request will have waited for too long.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.oldest().map(|at| at.saturating_add(self.limits.ttl))
    }

    /// A request waits from `now` on. Where there is no place for it, requests of its own or a lower priority leave for it,
    /// of the lowest priority first and of one priority the earliest; they are put into `discarded`.
    ///
    /// # Errors
    /// Gives the waiter back when all of those together would not make place; then nobody leaves.
    pub fn arrive(
        &mut self,
        now: Duration,
        arrival: &Arrival<'_>,
        waiter: T,
        discarded: &mut Vec<Left<T>>,
    ) -> Result<Ticket, T> {
        let Limits { capacity_bytes, waiting_max, .. } = self.limits;
        let (below_bytes, below) = self
            .bands
            .range(..=arrival.priority)
            .fold((0, 0), |(bytes, waiting), (_, band)| (bytes + band.bytes, waiting + band.waiting));
        let fits =
            (self.bytes - below_bytes).checked_add(arrival.bytes).is_some_and(|sum| sum <= capacity_bytes)
                && self.len() - below < waiting_max;
        if !fits {
            return Err(waiter);
        }
        while self.bytes + arrival.bytes > capacity_bytes || self.len() >= waiting_max {
            discarded.extend(self.discard_lowest(now));
        }
        Ok(self.insert(now, arrival, waiter))
    }

    /// Takes out the request of that ticket, if it still waits.
    pub fn remove(&mut self, now: Duration, ticket: Ticket) -> Option<Left<T>> {
        let waits = self.requests.get(ticket.number).is_some_and(|request| request.arrival == ticket.arrival);
        if waits { self.take(now, ticket.number) } else { None }
    }

    /// Takes out one request that has waited for too long, the earliest first.
    pub fn expire(&mut self, now: Duration) -> Option<Left<T>> {
        if self.next_expiry()? > now {
            return None;
        }
        self.take(now, self.all.first()?)
    }

    /// Puts limits in force, for those that wait as well. Those for whom there is no place any more are put into
    /// `discarded`, of the lowest priority first and of one priority the earliest.
    pub fn set_limits(&mut self, now: Duration, limits: Limits, discarded: &mut Vec<Left<T>>) {
        self.limits = limits;
        while self.bytes > limits.capacity_bytes || self.len() > limits.waiting_max {
            discarded.extend(self.discard_lowest(now));
        }
    }

    /// Asks `admit` of one request after the other, in the order in which they are to leave, and puts those that go into
    /// `left`: at most `most`. True if there may be more to go.
    pub fn dispatch(
        &mut self,
        now: Duration,
        most: usize,
        mut admit: impl FnMut(&mut T, i64) -> Verdict,
        left: &mut Vec<Left<T>>,
    ) -> bool {
        let (mut gone, mut passed_over) = (0, 0);
        let mut from = None;
        let mut after: Option<Turn> = None;
        while gone < most && passed_over < PASSED_OVER_MAX {
            let Some((priority, turn, number)) = self.next(from, after.as_ref()) else { return false };
            if from != Some(priority) {
                (from, after) = (Some(priority), None);
            }
            let Some(request) = self.requests.get_mut(number) else { return false };
            match admit(&mut request.waiter, priority) {
                Verdict::Go => {
                    if let Some(band) = self.bands.get_mut(&priority) {
                        band.goes(&turn);
                    }
                    left.extend(self.take(now, number));
                    gone += 1;
                }
                Verdict::NotThis => {
                    passed_over += 1;
                    after = Some(turn);
                }
                Verdict::Nobody => return false,
            }
        }
        gone == most && !self.is_empty()
    }

    /// The first request at most of the priority `from`, whose flow comes behind `after` there.
    fn next(&self, from: Option<i64>, after: Option<&Turn>) -> Option<(i64, Turn, u32)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let upper = from.map_or(Unbounded, Included);
        for (&priority, band) in self.bands.range((Unbounded, upper)).rev() {
            let lower = after.filter(|_| from == Some(priority)).map_or(Unbounded, Excluded);
            if let Some(turn) = band.order.range((lower, Unbounded)).next() {
                let number = band.flows.get(&turn.flow)?.requests.first()?;
                return Some((priority, turn.clone(), number));
            }
        }
        None
    }

    fn discard_lowest(&mut self, now: Duration) -> Option<Left<T>> {
        let earliest = self.bands.values().next()?.by_arrival.first()?;
        self.take(now, earliest)
    }

    fn insert(&mut self, now: Duration, arrival: &Arrival<'_>, waiter: T) -> Ticket {
        let Arrival { priority, flow, bytes, work } = *arrival;
        self.arrivals += 1;
        let (number_of_arrival, work) = (self.arrivals, work.max(1));
        let band = self.bands.entry(priority).or_insert_with(BandState::new);
        let flow =
            band.flows.get_key_value(flow).map_or_else(|| Arc::from(flow), |(name, _)| Arc::clone(name));
        let number = self.requests.insert(Request {
            waiter,
            priority,
            flow: Arc::clone(&flow),
            bytes,
            work,
            at: now,
            arrival: number_of_arrival,
        });
        self.all.push(&mut self.requests, number);
        band.by_arrival.push(&mut self.requests, number);
        band.waiting += 1;
        band.bytes += bytes;
        self.bytes += bytes;
        if let Some(known) = band.flows.get_mut(&flow) {
            known.requests.push(&mut self.requests, number);
        } else {
            let mut requests = List::new(Kind::Flow);
            requests.push(&mut self.requests, number);
            let start = band.finished;
            let turn = Turn {
                finish: start.saturating_add(work),
                arrival: number_of_arrival,
                flow: Arc::clone(&flow),
            };
            band.order.insert(turn.clone());
            band.flows.insert(flow, Flow { requests, start, turn });
        }
        Ticket { number, arrival: number_of_arrival }
    }

    fn take(&mut self, now: Duration, number: u32) -> Option<Left<T>> {
        let (priority, flow, bytes) = {
            let request = self.requests.get(number)?;
            (request.priority, Arc::clone(&request.flow), request.bytes)
        };
        self.all.unlink(&mut self.requests, number);
        self.bytes -= bytes;
        if let Some(band) = self.bands.get_mut(&priority) {
            band.by_arrival.unlink(&mut self.requests, number);
            band.waiting -= 1;
            band.bytes -= bytes;
            band.leave(&mut self.requests, &flow, number);
            if band.waiting == 0 {
                self.bands.remove(&priority);
            }
        }
        let Request { waiter, at, .. } = self.requests.remove(number)?;
        Some(Left { waiter, priority, waited: now.saturating_sub(at) })
    }
}

impl BandState {
    fn new() -> Self {
        Self {
            by_arrival: List::new(Kind::Band),
            flows: HashMap::new(),
            order: BTreeSet::new(),
            finished: 0,
            waiting: 0,
            bytes: 0,
        }
    }

    /// The first request of a flow goes: its flow has had that much more.
    fn goes(&mut self, turn: &Turn) {
        self.finished = self.finished.max(turn.finish);
        if let Some(flow) = self.flows.get_mut(&turn.flow) {
            flow.start = turn.finish;
        }
    }

    /// Takes a request out of its flow, whose turn is then that of its next.
    fn leave<T>(&mut self, requests: &mut Slab<Request<T>>, name: &Arc<str>, number: u32) {
        let Some(flow) = self.flows.get_mut(name) else { return };
        let was_first = flow.requests.first() == Some(number);
        flow.requests.unlink(requests, number);
        if !was_first {
            return;
        }
        self.order.remove(&flow.turn);
        match flow.requests.first().and_then(|first| requests.get(first)) {
            Some(first) => {
                flow.turn.finish = flow.start.saturating_add(first.work);
                flow.turn.arrival = first.arrival;
                self.order.insert(flow.turn.clone());
            }
            None => drop(self.flows.remove(name)),
        }
    }
}
