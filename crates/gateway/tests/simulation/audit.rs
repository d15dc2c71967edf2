//! What must hold at the end of every history.

use std::collections::BTreeMap;
use std::time::Duration;

use director::Reason;

use crate::history::{Arrival, Door, Got, History, Outcome, Record, Stayed};
use crate::plan::{Asking, CONNECTIONS_FEW, LOW, Plan, Reading};
use crate::world::Inside;

/// A connection that rested for this long may be closed by the gateway while the next request is on its way.
const RESTED: Duration = Duration::from_millis(1500);

/// How often requests ended in each way, and how much of that the taps alone can tell exactly.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) reasons: BTreeMap<&'static str, u64>,
    pub(crate) retries: u64,
    pub(crate) answers_checked: u64,
    /// Requests of which only a bound is known: whether the codec had begun them when their connection ended.
    pub(crate) unsure: u64,
    pub(crate) histories: u64,
}

/// Checks the history; violations are told to it.
pub(crate) fn audit(plan: &Plan, history: &History, inside: &Inside) -> Tally {
    let drained = inside.seen.lock().drained.unwrap_or_default();
    let mut tally = Tally { histories: 1, ..Tally::default() };
    for reason in Reason::ALL {
        let series = format!("pointsman_requests_total{{reason=\"{reason}\"}}");
        tally.reasons.insert(reason.word(), inside.counted(&series));
    }
    if let Some(open) = inside.unbalanced(history).filter(|_| drained) {
        history.violated(format!("after the end: {open}"));
    }
    let mut record = history.lock();
    let mut violations = Vec::new();
    check_counts(&record, &mut tally, &mut violations);
    if drained && tally.reasons["shutting_down"] > 0 {
        violations.push("a request was cut off, and all ended by themselves".to_owned());
    }
    for word in ["internal", "unknown_model"] {
        if tally.reasons[word] > 0 {
            violations.push(format!("{} requests ended as {word}", tally.reasons[word]));
        }
    }
    for outcome in &record.outcomes {
        let judge = Judge { plan, record: &record, outcome, drained };
        if let Err(what) = judge.check() {
            let asking = judge.asking();
            violations.push(format!("client {} {}: {what}", outcome.client, asking.tag));
        }
        tally.answers_checked += u64::from(outcome.got.is_some());
    }
    tally.retries = record.sent_on.values().map(|attempts| attempts.saturating_sub(1) as u64).sum();
    record.violations.extend(violations);
    tally
}

/// Every request that the gateway's end of a connection saw whole was counted exactly once.
fn check_counts(record: &Record, tally: &mut Tally, violations: &mut Vec<String>) {
    let (mut least, mut most) = (record.streams_answered, record.streams_begun);
    let mut told: BTreeMap<&str, u64> = BTreeMap::new();
    for door in &record.doors {
        let begun = begun(door, record);
        least += begun.0;
        most += begun.1;
        let in_order = door.answers.iter().zip(&door.heads);
        for (answer, head) in in_order.filter(|(answer, _)| answer.tag.is_some()) {
            if answer.tag.as_ref() != Some(head) {
                violations.push(format!("{head} was answered with what belongs to {:?}", answer.tag));
            }
        }
        let last = door.answers.len().saturating_sub(1);
        if door.answers.iter().take(last).any(|answer| !answer.whole) {
            violations.push(format!("an answer follows one that is not whole: {door:?}"));
        }
        for answer in &door.answers {
            let Some(word) = answer.reason.as_deref() else { continue };
            *told.entry(word).or_default() += 1;
            let known = Reason::ALL.iter().find(|reason| reason.word() == word);
            if known.is_none_or(|reason| reason.status().as_u16() != answer.status) {
                violations.push(format!("{word} was told with {}", answer.status));
            }
        }
    }
    let counted: u64 = tally.reasons.values().sum();
    if !(least..=most).contains(&counted) {
        violations.push(format!("{counted} requests were counted; {least} to {most} were begun"));
    }
    tally.unsure = most - least;
    for (reason, count) in told {
        let counted = tally.reasons.get(reason).copied().unwrap_or_default();
        if counted < count {
            violations.push(format!("{count} clients were told {reason}, {counted} requests ended so"));
        }
    }
}

/// How many requests of a connection the director saw, at least and at most: the codec begins one after the answer to
/// the one before.
fn begun(door: &Door, record: &Record) -> (u64, u64) {
    let answered = door.answers.iter().filter(|answer| answer.tag.is_some()).count();
    let refused_by_codec = door.answers.len() > answered;
    let next = door.heads.get(answered).filter(|_| !refused_by_codec);
    let next_was_sent_on = next.is_some_and(|tag| record.sent_on.contains_key(tag));
    let answered = answered as u64;
    (answered + u64::from(next_was_sent_on), answered + u64::from(next.is_some()))
}

/// One request and its client, judged by what all sides saw.
struct Judge<'a> {
    plan: &'a Plan,
    record: &'a Record,
    outcome: &'a Outcome,
    drained: bool,
}

impl Judge<'_> {
    fn asking(&self) -> &Asking {
        &self.plan.clients[self.outcome.client].requests[self.outcome.asked]
    }

    /// Whether the client did its part, and nothing came between it and the gateway.
    fn is_untroubled(&self) -> bool {
        let client = &self.plan.clients[self.outcome.client];
        self.outcome.stayed != Stayed::No
            && client.reading != Reading::Never
            && !self.plan.troubles_clients(client.host)
    }

    fn check(&self) -> Result<(), String> {
        if self.outcome.stayed == Stayed::InVain && self.is_untroubled() && !self.may_miss_the_end() {
            return Err(format!(
                "waited in vain; came: {:?}",
                self.outcome.got.as_ref().map(|got| &got.head)
            ));
        }
        let Some(got) = &self.outcome.got else {
            return if self.may_get_nothing() { Ok(()) } else { Err("got no answer".to_owned()) };
        };
        if got.head.field("x-request-id") != Some(&self.asking().tag) {
            return Err(format!("got another's answer: {:?}", got.head));
        }
        let arrival = got.head.number("x-arrival").map(|arrival| &self.record.arrivals[arrival]);
        if self.outcome.closed_soon && !self.may_be_closed() && arrival.is_none_or(|arrival| arrival.sound) {
            return Err("was told that the connection is kept, and it was closed".to_owned());
        }
        match arrival {
            Some(arrival) => self.check_passed_on(got, arrival),
            None => self.check_refusal(got),
        }
    }

    /// A connection that rested, or has seen nothing of its request, may be closed; a stream beyond the bound is refused;
    /// and who hangs up has no claim.
    fn may_get_nothing(&self) -> bool {
        let client = &self.plan.clients[self.outcome.client];
        (client.http2 && client.requests.len() > self.plan.limits.streams_max as usize)
            || self.outcome.rested.is_some_and(|rested| rested >= RESTED)
            || self.may_be_closed()
    }

    /// Whether the gateway may close connections at any time.
    fn may_be_closed(&self) -> bool {
        !self.is_untroubled()
            || self.plan.limits.connections_max <= CONNECTIONS_FEW
            || self.plan.stop_at.is_some()
    }

    /// Turmoil 0.7 loses the end of a connection that comes when its window is full.
    fn may_miss_the_end(&self) -> bool {
        let slow = self.plan.clients[self.outcome.client].reading != Reading::Fast;
        let tag = &self.asking().tag;
        // The heads of HTTP/2 are not read along.
        let may_be_its = |door: &&Door| door.heads.contains(tag) || door.heads.is_empty();
        slow && self.record.doors.iter().filter(may_be_its).all(|door| door.closed)
    }

    fn check_passed_on(&self, got: &Got, arrival: &Arrival) -> Result<(), String> {
        if got.head.field("x-tag") != Some(&self.asking().tag) || arrival.tag != self.asking().tag {
            return Err(format!("got what a server said to {}", arrival.tag));
        }
        if got.whole && got.body == arrival.answer {
            return Ok(());
        }
        let may_be_cut = !self.is_untroubled() || (self.plan.stop_at.is_some() && !self.drained);
        let is_of_broken = !arrival.sound || self.plan.troubles_servers() || arrival.until_close;
        if got.whole && arrival.until_close && arrival.answer.starts_with(&got.body) {
            // A crash closes connections as well: such an answer cannot tell that it is not whole.
            return if arrival.sound { Err("lost the end of an answer".to_owned()) } else { Ok(()) };
        }
        if !got.whole && arrival.answer.starts_with(&got.body) {
            let ends_with_event = arrival.events && got.head.field("content-length").is_none();
            return match (may_be_cut, is_of_broken && !ends_with_event) {
                (false, false) => Err(format!(
                    "was cut off after {} bytes of {arrival:?}: {:?}",
                    got.body.len(),
                    got.head.fields
                )),
                _ => Ok(()),
            };
        }
        if !is_of_broken {
            return Err(format!("got other bytes than server {} sent", arrival.server));
        }
        check_broken_stream(got, arrival, may_be_cut)
    }

    fn check_refusal(&self, got: &Got) -> Result<(), String> {
        let reason = got.head.field("x-pointsman-reason").unwrap_or("none");
        if !got.whole && self.is_untroubled() {
            return Err(format!("a refusal ({reason}) was cut off"));
        }
        let body: serde_json::Value = match serde_json::from_slice(&got.body) {
            Ok(body) => body,
            Err(_) if !got.whole => return Ok(()),
            Err(error) => return Err(format!("a refusal that is no JSON: {error}")),
        };
        if body["error"]["code"] != reason {
            return Err(format!("a refusal for {reason} says {body}"));
        }
        if self.is_just(reason) {
            Ok(())
        } else {
            Err(format!("was refused without cause: {reason}, {body}"))
        }
    }

    /// Whether there was cause to refuse this request so.
    fn is_just(&self, reason: &str) -> bool {
        let (plan, asking) = (self.plan, self.asking());
        match reason {
            "malformed" => asking.malformed,
            "body_too_large" => asking.body.len() as u64 > plan.shared.body_bytes_max,
            "headers_too_large" => asking.big_head,
            "client_too_slow" => asking.stalls || !self.is_untroubled(),
            "too_many_requests" | "too_many_bytes" => plan.tight,
            "no_endpoint" => plan.declarations.iter().any(|(_, declared)| declared.endpoints.is_empty()),
            "queue_full" | "queue_timeout" => plan.queues(),
            "shed" => asking.objective == Some(LOW) && !plan.queues_always(),
            "pool_gone" => {
                plan.queues() && plan.declarations.iter().any(|(_, declared)| declared.pool != "p")
            }
            "shutting_down" => plan.queues() && plan.stop_at.is_some(),
            // A request may meet the close of the connection that it is sent on, which turmoil may lose.
            "upstream_timeout" | "upstream_unreachable" => !plan.is_calm() || self.record.silent_closes > 0,
            _ => false,
        }
    }
}

/// A stream that broke is whole events of what the server sent, and then one that says so.
fn check_broken_stream(got: &Got, arrival: &Arrival, may_be_cut: bool) -> Result<(), String> {
    let text = String::from_utf8_lossy(&got.body);
    let Some(at) = text.rfind("data: {\"error\":") else {
        return Err(format!("got {:?}, whole {}, of {arrival:?}", got.body.len(), got.whole));
    };
    let (sent, event) = text.split_at(at);
    if !arrival.answer.starts_with(sent.as_bytes()) || !(sent.is_empty() || sent.ends_with("\n\n")) {
        return Err(format!("got other events than server {} sent", arrival.server));
    }
    let event: serde_json::Value =
        serde_json::from_str(event.trim_start_matches("data: ")).map_err(|error| error.to_string())?;
    match event["error"]["code"].as_str() {
        Some("upstream_broken" | "upstream_timeout") if got.whole || may_be_cut => Ok(()),
        _ => Err(format!("the stream ends with {event}, whole {}", got.whole)),
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Tally) {
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
        self.retries += other.retries;
        self.answers_checked += other.answers_checked;
        self.unsure += other.unsure;
        self.histories += other.histories;
    }

    /// A simulation in which nothing happens proves nothing.
    pub(crate) fn check_coverage(&self) {
        let never: Vec<_> =
            self.reasons.iter().filter(|(_, count)| **count == 0).map(|(word, _)| *word).collect();
        assert!(self.histories < 200 || never == ["internal", "unknown_model"], "never seen: {never:?}");
    }
}
