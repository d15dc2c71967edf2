//! Random histories of a queue, held against a model that is slow and obvious: all that waits in one list, looked
//! through from end to end at each step.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::time::Duration;

use flow::{Arrival, Left, Limits, Queue, Ticket, Verdict};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Event {
    Arrive {
        priority: i64,
        flow: u8,
        bytes: u64,
        work: u64,
    },
    /// So many go, none of which has `number % 4 == stuck`; nobody goes beyond `room`.
    Dispatch {
        most: usize,
        room: usize,
        stuck: usize,
    },
    Leave {
        which: usize,
    },
    Expire,
    Wait {
        ms: u64,
    },
    Limits {
        capacity_bytes: u64,
        ttl_ms: u64,
        waiting_max: usize,
    },
}

#[derive(Clone, Debug)]
struct Waiting {
    number: usize,
    priority: i64,
    flow: u8,
    bytes: u64,
    work: u64,
    at: Duration,
}

#[derive(Default)]
struct Model {
    waiting: Vec<Waiting>,
    /// What each band has finished, while somebody waits in it; and where each flow's first request begins.
    finished: HashMap<i64, u64>,
    starts: HashMap<(i64, u8), u64>,
}

impl Model {
    fn bytes(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.bytes).sum()
    }

    fn forget_the_idle(&mut self) {
        let waiting = &self.waiting;
        self.finished.retain(|priority, _| waiting.iter().any(|other| other.priority == *priority));
        self.starts.retain(|key, _| waiting.iter().any(|other| (other.priority, other.flow) == *key));
    }

    fn take(&mut self, number: usize) -> Waiting {
        let at = self.waiting.iter().position(|waiting| waiting.number == number).unwrap();
        let taken = self.waiting.remove(at);
        self.forget_the_idle();
        taken
    }

    fn arrive(&mut self, new: Waiting, limits: &Limits) -> Option<Vec<usize>> {
        let above: Vec<_> = self.waiting.iter().filter(|other| other.priority > new.priority).collect();
        let above_bytes: u64 = above.iter().map(|other| other.bytes).sum();
        if above_bytes + new.bytes > limits.capacity_bytes || above.len() >= limits.waiting_max {
            return None;
        }
        let mut discarded = Vec::new();
        while self.bytes() + new.bytes > limits.capacity_bytes || self.waiting.len() >= limits.waiting_max {
            discarded.push(self.discard());
        }
        let finished = *self.finished.entry(new.priority).or_default();
        self.starts.entry((new.priority, new.flow)).or_insert(finished);
        self.waiting.push(new);
        Some(discarded)
    }

    fn discard(&mut self) -> usize {
        let lowest = self.waiting.iter().map(|waiting| waiting.priority).min().unwrap();
        let number = self.waiting.iter().find(|waiting| waiting.priority == lowest).unwrap().number;
        self.take(number).number
    }

    /// Who goes next of those that are not `passed` over: the highest priority; the flow whose first request would
    /// finish first, and of two the one that came earlier.
    fn next(&self, passed: &[(i64, u8)]) -> Option<Waiting> {
        let firsts = self.waiting.iter().enumerate().filter(|(at, waiting)| {
            let key = (waiting.priority, waiting.flow);
            !passed.contains(&key)
                && !self.waiting[..*at].iter().any(|other| (other.priority, other.flow) == key)
        });
        let finish = |waiting: &Waiting| self.starts[&(waiting.priority, waiting.flow)] + waiting.work;
        firsts
            .map(|(_, waiting)| waiting)
            .min_by_key(|waiting| (std::cmp::Reverse(waiting.priority), finish(waiting), waiting.number))
            .cloned()
    }

    fn dispatch(&mut self, most: usize, room: usize, stuck: usize) -> Vec<usize> {
        let (mut gone, mut passed) = (Vec::new(), Vec::new());
        while gone.len() < most.min(room) {
            let Some(next) = self.next(&passed) else { break };
            let key = (next.priority, next.flow);
            if next.number % 4 == stuck {
                passed.push(key);
                continue;
            }
            let finish = self.starts[&key] + next.work;
            self.starts.insert(key, finish);
            let finished = self.finished.get_mut(&next.priority).unwrap();
            *finished = (*finished).max(finish);
            gone.push(self.take(next.number).number);
        }
        gone
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (-2_i64..3, 0_u8..4, prop_oneof![0_u64..40, Just(150)], 0_u64..50)
            .prop_map(|(priority, flow, bytes, work)| Event::Arrive { priority, flow, bytes, work }),
        3 => (0_usize..8, 0_usize..8, 0_usize..8).prop_map(|(most, room, stuck)| Event::Dispatch { most, room, stuck }),
        1 => (0_usize..64).prop_map(|which| Event::Leave { which }),
        1 => Just(Event::Expire),
        1 => (0_u64..400).prop_map(|ms| Event::Wait { ms }),
        1 => (0_u64..400, 1_u64..1500, 0_usize..20)
            .prop_map(|(capacity_bytes, ttl_ms, waiting_max)| Event::Limits { capacity_bytes, ttl_ms, waiting_max }),
    ]
}

fn numbers(left: &[Left<usize>]) -> Vec<usize> {
    left.iter().map(|left| left.waiter).collect()
}

fn play(events: &[Event]) {
    let mut limits = Limits { capacity_bytes: 200, ttl: Duration::from_secs(1), waiting_max: 12 };
    let mut queue = Queue::new(limits);
    let mut model = Model::default();
    let mut now = Duration::ZERO;
    let mut tickets: Vec<Option<Ticket>> = Vec::new();
    let mut left_so_far = 0;
    for event in events {
        let mut left = Vec::new();
        let expected = match *event {
            Event::Arrive { priority, flow, bytes, work } => {
                let number = tickets.len();
                let waiting = Waiting { number, priority, flow, bytes, work: work.max(1), at: now };
                let name = flow.to_string();
                let arrival = Arrival { priority, flow: &name, bytes, work };
                let ticket = queue.arrive(now, &arrival, number, &mut left);
                let expected = model.arrive(waiting, &limits);
                assert_eq!(ticket.is_ok(), expected.is_some(), "{event:?}");
                if ticket.is_err() {
                    left_so_far += 1;
                }
                tickets.push(ticket.ok());
                expected.unwrap_or_default()
            }
            Event::Dispatch { most, room, stuck } => {
                let mut room_left = room;
                queue.dispatch(
                    now,
                    most,
                    |number, _| match room_left {
                        0 => Verdict::Nobody,
                        _ if *number % 4 == stuck => Verdict::NotThis,
                        _ => {
                            room_left -= 1;
                            Verdict::Go
                        }
                    },
                    &mut left,
                );
                model.dispatch(most, room, stuck)
            }
            Event::Leave { which } => {
                let Some(ticket) = tickets.get(which).copied().flatten() else { continue };
                left.extend(queue.remove(now, ticket));
                let waits = model.waiting.iter().any(|waiting| waiting.number == which);
                if waits { vec![model.take(which).number] } else { vec![] }
            }
            Event::Expire => {
                left.extend(std::iter::from_fn(|| queue.expire(now)));
                let late: Vec<_> = model
                    .waiting
                    .iter()
                    .filter(|waiting| waiting.at + limits.ttl <= now)
                    .map(|waiting| waiting.number)
                    .collect();
                late.into_iter().map(|number| model.take(number).number).collect()
            }
            Event::Wait { ms } => {
                now += Duration::from_millis(ms);
                vec![]
            }
            Event::Limits { capacity_bytes, ttl_ms, waiting_max } => {
                limits = Limits { capacity_bytes, ttl: Duration::from_millis(ttl_ms), waiting_max };
                queue.set_limits(now, limits, &mut left);
                let mut discarded = Vec::new();
                while model.bytes() > capacity_bytes || model.waiting.len() > waiting_max {
                    discarded.push(model.discard());
                }
                discarded
            }
        };
        assert_eq!(numbers(&left), expected, "{event:?}");
        left_so_far += left.len();

        assert_eq!(queue.len(), model.waiting.len());
        assert_eq!(queue.bytes(), model.bytes());
        assert_eq!(tickets.len(), left_so_far + queue.len(), "nobody is lost, nobody leaves twice");
        assert!(queue.bytes() <= limits.capacity_bytes && queue.len() <= limits.waiting_max);
        assert_eq!(queue.oldest(), model.waiting.iter().map(|waiting| waiting.at).min());
        for band in queue.bands() {
            let of_it = model.waiting.iter().filter(|waiting| waiting.priority == band.priority);
            let (waiting, bytes) =
                of_it.fold((0, 0), |(waiting, bytes), one| (waiting + 1, bytes + one.bytes));
            assert_eq!((band.waiting, band.bytes), (waiting, bytes));
        }
    }
}

proptest! {
    #[test]
    fn a_queue_does_what_the_model_does(events in prop::collection::vec(event(), 0..120)) {
        play(&events);
    }

    /// Two flows that have requests waiting all the time share by work, to within a request of each.
    #[test]
    fn shares_are_of_work(works in prop::collection::vec((0_u8..3, 1_u64..1000), 200..400)) {
        let mut queue = Queue::new(Limits { capacity_bytes: u64::MAX, ttl: Duration::MAX, waiting_max: usize::MAX });
        for &(flow, work) in &works {
            let name = flow.to_string();
            let arrival = Arrival { priority: 0, flow: &name, bytes: 1, work };
            queue.arrive(Duration::ZERO, &arrival, (flow, work), &mut Vec::new()).unwrap();
        }
        let mut waiting: HashMap<u8, usize> = HashMap::new();
        works.iter().for_each(|(flow, _)| *waiting.entry(*flow).or_default() += 1);
        let mut served: HashMap<u8, u64> = HashMap::new();
        loop {
            let mut left = Vec::new();
            queue.dispatch(Duration::ZERO, 1, |_, _| Verdict::Go, &mut left);
            let Some(Left { waiter: (flow, work), .. }) = left.pop() else { break };
            *served.entry(flow).or_default() += work;
            *waiting.get_mut(&flow).unwrap() -= 1;
            if waiting.values().any(|left| *left == 0) {
                break;
            }
            let most = waiting.keys().map(|flow| served.get(flow).copied().unwrap_or(0)).max().unwrap();
            let least = waiting.keys().map(|flow| served.get(flow).copied().unwrap_or(0)).min().unwrap();
            prop_assert!(most - least <= 2 * 1000, "{served:?}");
        }
    }
}
