//! Conservation: what is booked is what is held, whatever order things end in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::time::Duration;

use pool::EndpointSpec;
use proptest::prelude::*;

use super::*;
use crate::endpoint::Slot;

fn endpoint() -> Arc<Endpoint> {
    let spec = EndpointSpec { name: "a".into(), host: "127.0.0.1".into(), port: 1, tls: false };
    Arc::new(Endpoint::new(Slot::new(0), spec))
}

fn counts(endpoint: &Endpoint) -> (u32, u32, u64) {
    let ledger = &endpoint.ledger;
    (ledger.requests(), ledger.unanswered(), ledger.prefill_tokens())
}

#[derive(Debug, Clone)]
enum Step {
    Book(u64),
    Deliver(usize),
    FirstByte(usize),
    Drop(usize),
    /// The task that holds it panics.
    Panic(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u64..5000).prop_map(Step::Book),
        3 => any::<usize>().prop_map(Step::Deliver),
        2 => any::<usize>().prop_map(Step::FirstByte),
        2 => any::<usize>().prop_map(Step::Drop),
        1 => any::<usize>().prop_map(Step::Panic),
    ]
}

/// Takes one of those held, if any.
fn pick<T>(held: &mut Vec<T>, which: usize) -> Option<T> {
    (!held.is_empty()).then(|| held.swap_remove(which % held.len()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_ledger_holds_what_the_bookings_hold(steps in prop::collection::vec(step(), 0..100)) {
        let endpoint = endpoint();
        // Each booking with the tokens that it should still hold, and whether it should be awaited, answered or neither.
        let mut held: Vec<(Booking, u64, Option<bool>)> = Vec::new();
        for (sequence, step) in (1..).zip(steps) {
            match step {
                Step::Book(tokens) => {
                    held.push((Booking::book(&endpoint, tokens, sequence), tokens, None));
                    prop_assert_eq!(endpoint.ledger.last_booked(), sequence);
                }
                Step::Deliver(which) => if let Some((booking, tokens, answered)) = pick(&mut held, which) {
                    booking.delivered();
                    booking.delivered();
                    held.push((booking, tokens, answered.or(Some(false))));
                },
                Step::FirstByte(which) => if let Some((mut booking, ..)) = pick(&mut held, which) {
                    booking.first_byte();
                    booking.first_byte();
                    held.push((booking, 0, Some(true)));
                },
                Step::Drop(which) => drop(pick(&mut held, which)),
                Step::Panic(which) => if let Some(held) = pick(&mut held, which) {
                    let unwound = catch_unwind(AssertUnwindSafe(move || {
                        let _held = held;
                        // Unlike a panic this makes no noise.
                        std::panic::resume_unwind(Box::new(()));
                    }));
                    prop_assert!(unwound.is_err());
                },
            }
            let tokens = held.iter().map(|(_, tokens, _)| tokens).sum::<u64>();
            let unanswered = held.iter().filter(|(.., answered)| *answered == Some(false)).count();
            prop_assert_eq!(counts(&endpoint), (held.len() as u32, unanswered as u32, tokens));
        }
        drop(held);
        prop_assert_eq!(counts(&endpoint), (0, 0, 0));
    }
}

#[test]
fn bookings_from_many_threads_leave_nothing_behind() {
    let endpoint = endpoint();
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (endpoint, barrier) = (&endpoint, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for round in 0..5000 {
                    let mut booking = Booking::book(endpoint, round, thread * 5000 + round + 1);
                    if round % 2 == 0 {
                        booking.first_byte();
                    }
                }
            });
        }
    });
    assert_eq!(counts(&endpoint), (0, 0, 0));
    assert_eq!(endpoint.ledger.last_booked(), 20_000);
}

#[test]
fn a_late_booking_with_an_earlier_number_does_not_turn_the_turn_back() {
    let endpoint = endpoint();
    let _later = Booking::book(&endpoint, 0, 7);
    let _earlier = Booking::book(&endpoint, 0, 6);
    assert_eq!(endpoint.ledger.last_booked(), 7);
}

#[test]
fn a_booking_outlives_the_endpoints_membership() {
    let endpoint = endpoint();
    let booking = Booking::book(&endpoint, 10, 1);
    let weak = Arc::downgrade(&endpoint);
    drop(endpoint);
    assert_eq!(counts(booking.endpoint()), (1, 0, 10));
    drop(booking);
    assert!(weak.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_booking_wakes_who_waits_for_one_and_none_is_slept_through() {
    let endpoint = endpoint();
    let day = Duration::from_secs(86_400);
    let waits = |seen| tokio::time::timeout(day, endpoint.ledger.booked_after(seen));
    assert!(waits(0).await.is_err(), "nothing was booked");
    let (woken, _booking) = tokio::join!(waits(0), async { Booking::book(&endpoint, 0, 1) });
    assert!(woken.is_ok());
    assert!(waits(0).await.is_ok(), "booked before the wait began");
    assert!(waits(1).await.is_err(), "the wake-up left over is no booking");
}
