//! The state machine on time passed in.

use std::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Left out at time 0.
fn left_out() -> Health {
    let health = Health::default();
    health.failed(ms(0));
    health.failed(ms(0));
    health
}

#[test]
fn one_failure_is_forgiven_and_a_success_forgets_it() {
    let health = Health::default();
    assert_eq!(health.standing(ms(0)), Standing::In);
    health.failed(ms(0));
    assert_eq!(health.standing(ms(0)), Standing::In);
    health.succeeded();
    health.failed(ms(1));
    assert_eq!(health.standing(ms(1)), Standing::In);
    assert!(health.admits(ms(1)));
}

#[test]
fn two_failures_in_a_row_leave_it_out_for_half_a_second() {
    let health = left_out();
    assert_eq!(health.standing(ms(499)), Standing::Out);
    assert!(!health.admits(ms(499)));
    assert!(!health.try_probe(ms(499)));
    assert_eq!(health.standing(ms(500)), Standing::Probation);
}

#[test]
fn exactly_one_probe_is_let_through() {
    let health = left_out();
    assert!(health.admits(ms(500)));
    assert_eq!(health.standing(ms(500)), Standing::Out);
    assert!(!health.admits(ms(501)));
    assert!(!health.try_probe(ms(501)));
}

#[test]
fn of_many_threads_one_gets_the_probe() {
    for _ in 0..200 {
        let (health, won) = (left_out(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| won.fetch_add(u32::from(health.admits(ms(500))), Ordering::Relaxed));
            }
        });
        assert_eq!(won.into_inner(), 1);
    }
}

#[test]
fn a_probe_that_succeeds_brings_it_back_and_forgets_the_while() {
    let health = left_out();
    assert!(health.try_probe(ms(500)));
    health.succeeded();
    assert_eq!(health.standing(ms(501)), Standing::In);
    health.failed(ms(600));
    assert_eq!(health.standing(ms(600)), Standing::In);
    health.failed(ms(600));
    assert_eq!(health.standing(ms(1099)), Standing::Out);
    assert_eq!(health.standing(ms(1100)), Standing::Probation);
}

#[test]
fn failed_probes_make_the_while_longer_up_to_ten_seconds() {
    let health = left_out();
    let mut now = ms(500);
    for wait_ms in [1000, 2000, 4000, 8000, 10_000, 10_000] {
        assert!(health.try_probe(now));
        health.failed(now);
        assert_eq!(health.standing(now + ms(wait_ms - 1)), Standing::Out, "{wait_ms}");
        now += ms(wait_ms);
        assert_eq!(health.standing(now), Standing::Probation, "{wait_ms}");
    }
    // As often as the counter can count, and more.
    for _ in 0..300 {
        assert!(health.try_probe(now));
        health.failed(now);
        now += OUT_MAX;
    }
    assert_eq!(health.standing(now), Standing::Probation);
}

#[test]
fn a_probe_that_never_ends_gives_way_after_its_lease() {
    let health = left_out();
    assert!(health.try_probe(ms(500)));
    assert_eq!(health.standing(ms(500) + PROBE_LEASE - ms(1)), Standing::Out);
    assert!(health.try_probe(ms(500) + PROBE_LEASE));
    assert!(!health.try_probe(ms(500) + PROBE_LEASE));
}

#[test]
fn a_burst_that_fails_together_counts_once() {
    let health = Health::default();
    for _ in 0..64 {
        health.failed(ms(100));
    }
    assert_eq!(health.standing(ms(599)), Standing::Out);
    assert_eq!(health.standing(ms(600)), Standing::Probation);
}

#[test]
fn an_answer_that_was_under_way_brings_it_back() {
    let health = left_out();
    health.succeeded();
    assert_eq!(health.standing(ms(1)), Standing::In);
}

proptest! {
    #[test]
    fn the_word_holds_the_state(failures: u8, probing: bool, deadline_us in 0..=State::DEADLINE) {
        let state = State { failures, probing, deadline_us };
        prop_assert_eq!(State::unpack(state.pack()), state);
    }

    /// Whatever happens, an endpoint is tried again at most `OUT_MAX` or a lease later.
    #[test]
    fn nobody_is_left_out_for_ever(events in prop::collection::vec((0_u8..3, 0_u64..20_000), 1..60)) {
        let health = Health::default();
        let mut now = Duration::ZERO;
        for (event, later_ms) in events {
            now += ms(later_ms);
            match event {
                0 => health.failed(now),
                1 => health.succeeded(),
                _ => { health.try_probe(now); }
            }
            prop_assert_ne!(health.standing(now + OUT_MAX.max(PROBE_LEASE)), Standing::Out);
        }
    }
}
