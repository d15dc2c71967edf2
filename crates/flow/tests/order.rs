//! What a queue promises, one sentence each.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use flow::{Arrival, Left, Limits, Queue, Ticket, Verdict};

const SECOND: Duration = Duration::from_secs(1);

fn queue(capacity_bytes: u64) -> Queue<&'static str> {
    Queue::new(Limits { capacity_bytes, ttl: 30 * SECOND, waiting_max: 1000 })
}

fn arrive(
    queue: &mut Queue<&'static str>,
    name: &'static str,
    priority: i64,
    flow: &str,
    bytes: u64,
) -> Ticket {
    let arrival = Arrival { priority, flow, bytes, work: 100 };
    queue.arrive(Duration::ZERO, &arrival, name, &mut Vec::new()).unwrap()
}

fn go(queue: &mut Queue<&'static str>, most: usize) -> Vec<&'static str> {
    let mut left = Vec::new();
    queue.dispatch(Duration::ZERO, most, |_, _| Verdict::Go, &mut left);
    names(&left)
}

fn names(left: &[Left<&'static str>]) -> Vec<&'static str> {
    left.iter().map(|left| left.waiter).collect()
}

#[test]
fn by_priority_then_first_come_first_served() {
    let mut queue = queue(1000);
    for (name, priority) in [("a", 0), ("b", -5), ("c", 7), ("d", 0), ("e", 7)] {
        arrive(&mut queue, name, priority, "", 1);
    }
    assert_eq!(
        queue.bands().map(|band| (band.priority, band.waiting)).collect::<Vec<_>>(),
        [(7, 2), (0, 2), (-5, 1)]
    );
    assert_eq!((queue.ahead(7), queue.ahead(0), queue.ahead(-100)), (2, 4, 5));
    assert_eq!(go(&mut queue, 9), ["c", "e", "a", "d", "b"]);
    assert!(queue.is_empty() && queue.bytes() == 0);
}

#[test]
fn flows_take_turns_however_many_of_one_came_first() {
    let mut queue = queue(1000);
    for name in ["x1", "x2", "x3", "x4"] {
        arrive(&mut queue, name, 0, "x", 1);
    }
    for name in ["y1", "y2"] {
        arrive(&mut queue, name, 0, "y", 1);
    }
    assert_eq!(go(&mut queue, 9), ["x1", "y1", "x2", "y2", "x3", "x4"]);
}

#[test]
fn who_comes_back_has_no_credit_and_who_is_new_starves_nobody() {
    let mut queue = queue(1000);
    arrive(&mut queue, "early", 0, "idle", 1);
    assert_eq!(go(&mut queue, 1), ["early"]);
    for name in ["busy1", "busy2", "busy3", "busy4"] {
        arrive(&mut queue, name, 0, "busy", 1);
    }
    assert_eq!(go(&mut queue, 2), ["busy1", "busy2"]);
    for name in ["idle1", "idle2", "idle3"] {
        arrive(&mut queue, name, 0, "idle", 1);
    }
    assert_eq!(go(&mut queue, 9), ["busy3", "idle1", "busy4", "idle2", "idle3"]);

    arrive(&mut queue, "old", 0, "old", 1);
    for name in ["n1", "n2", "n3"] {
        arrive(&mut queue, name, 0, name, 1);
    }
    assert_eq!(go(&mut queue, 1), ["old"]);
}

#[test]
fn a_newcomer_that_does_not_fit_sends_away_the_earliest_of_the_lowest_priority() {
    let mut queue = queue(30);
    arrive(&mut queue, "low1", -1, "", 10);
    arrive(&mut queue, "high", 1, "", 10);
    arrive(&mut queue, "low2", -1, "", 10);
    let mut discarded = Vec::new();
    let plain = Arrival { priority: 0, flow: "", bytes: 15, work: 1 };
    assert!(queue.arrive(SECOND, &plain, "plain", &mut discarded).is_ok());
    assert_eq!(names(&discarded), ["low1", "low2"]);
    assert_eq!((discarded[0].priority, discarded[0].waited), (-1, SECOND));
    // Of its own priority too.
    discarded.clear();
    assert!(queue.arrive(SECOND, &plain, "plain2", &mut discarded).is_ok());
    assert_eq!(names(&discarded), ["plain"]);
}

#[test]
fn who_cannot_be_given_a_place_is_refused_and_nobody_goes_for_it() {
    let mut queue = queue(30);
    arrive(&mut queue, "high", 1, "", 20);
    arrive(&mut queue, "plain", 0, "", 10);
    let mut discarded = Vec::new();
    for (priority, bytes) in [(0, 11), (9, 31), (-1, 1), (0, u64::MAX)] {
        let arrival = Arrival { priority, flow: "", bytes, work: 1 };
        assert_eq!(queue.arrive(SECOND, &arrival, "new", &mut discarded), Err("new"), "{arrival:?}");
    }
    assert!(discarded.is_empty() && queue.len() == 2);
}

#[test]
fn there_is_a_bound_on_how_many_wait_whatever_their_size() {
    let mut queue = Queue::new(Limits { capacity_bytes: 1000, ttl: SECOND, waiting_max: 2 });
    arrive(&mut queue, "a", 0, "", 0);
    arrive(&mut queue, "b", 0, "", 0);
    let mut discarded = Vec::new();
    let arrival = Arrival { priority: 0, flow: "", bytes: 0, work: 1 };
    assert!(queue.arrive(SECOND, &arrival, "c", &mut discarded).is_ok());
    assert_eq!(names(&discarded), ["a"]);
}

#[test]
fn limits_hold_at_once_for_what_waits() {
    let mut queue = queue(100);
    for (name, priority) in [("high", 5), ("low1", -5), ("low2", -5)] {
        arrive(&mut queue, name, priority, "", 30);
    }
    let mut discarded = Vec::new();
    queue.set_limits(SECOND, Limits { capacity_bytes: 65, ttl: 2 * SECOND, waiting_max: 10 }, &mut discarded);
    assert_eq!(names(&discarded), ["low1"]);
    assert_eq!(queue.next_expiry(), Some(2 * SECOND), "counted from its arrival");
    assert_eq!(queue.expire(2 * SECOND - Duration::from_nanos(1)), None);
    let late: Vec<_> = std::iter::from_fn(|| queue.expire(2 * SECOND)).collect();
    assert_eq!(names(&late), ["high", "low2"]);
    assert_eq!(queue.next_expiry(), None);
}

#[test]
fn who_left_leaves_no_trace() {
    let mut queue = queue(100);
    let first = arrive(&mut queue, "first", 0, "x", 10);
    let second = arrive(&mut queue, "second", 0, "x", 10);
    assert_eq!(queue.remove(SECOND, first).unwrap().waiter, "first");
    assert_eq!(queue.remove(SECOND, first), None);
    // The number is given again; the old ticket does not name the new one.
    arrive(&mut queue, "third", 0, "x", 10);
    assert_eq!(queue.remove(SECOND, first), None);
    assert_eq!(go(&mut queue, 9), ["second", "third"]);
    assert_eq!(queue.remove(SECOND, second), None);
}

#[test]
fn those_that_cannot_go_hold_up_nobody_but_those_behind_them_in_their_flow() {
    let mut queue = queue(1000);
    for (name, priority, flow) in
        [("a1", 1, "a"), ("a2", 1, "a"), ("b1", 1, "b"), ("c1", 0, "c"), ("d1", 0, "d")]
    {
        arrive(&mut queue, name, priority, flow, 1);
    }
    let mut left = Vec::new();
    let mut asked = Vec::new();
    let verdict = |name: &mut &'static str, _: i64| {
        asked.push(*name);
        if name.starts_with(['a', 'c']) { Verdict::NotThis } else { Verdict::Go }
    };
    assert!(!queue.dispatch(SECOND, 9, verdict, &mut left));
    assert_eq!(asked, ["a1", "b1", "c1", "d1"]);
    assert_eq!(names(&left), ["b1", "d1"]);
    assert_eq!(go(&mut queue, 9), ["a1", "a2", "c1"]);
}

#[test]
fn a_batch_says_whether_there_is_more() {
    let mut queue = queue(1000);
    for name in ["a", "b", "c"] {
        arrive(&mut queue, name, 0, "", 1);
    }
    let mut left = Vec::new();
    assert!(queue.dispatch(SECOND, 2, |_, _| Verdict::Go, &mut left));
    assert!(!queue.dispatch(SECOND, 2, |_, _| Verdict::Nobody, &mut left));
    assert!(!queue.dispatch(SECOND, 2, |_, _| Verdict::Go, &mut left));
    assert_eq!(left.len(), 3);
}
