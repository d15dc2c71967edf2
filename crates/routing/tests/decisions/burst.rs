//! Requests that come all at once, and endpoints that are all equal.

use pool::RoutingStrategy::{self, Default, PrefixCache};

use crate::world::{Service, prompt};

/// How many of the requests each of eight idle endpoints gets when none of them ends.
fn burst(strategy: RoutingStrategy, prompts: impl Iterator<Item = String>) -> Vec<usize> {
    let mut service = Service::new(8, strategy, 1);
    let mut counts = vec![0; 8];
    let in_flight: Vec<_> = prompts.map(|prompt| service.send(&prompt)).collect();
    in_flight.iter().for_each(|(endpoint, _)| counts[*endpoint] += 1);
    counts
}

#[test]
fn a_burst_of_64_different_prompts_spreads_evenly() {
    for strategy in [Default, PrefixCache] {
        let counts = burst(strategy, (0..64).map(|number| prompt(&format!("question {number}"), 20)));
        assert_eq!(counts, [8; 8], "{strategy:?}");
    }
}

#[test]
fn a_burst_of_64_times_the_same_new_prompt_spreads_evenly() {
    for strategy in [Default, PrefixCache] {
        for blocks in [0, 1, 20, 128, 1000] {
            let counts = burst(strategy, (0..64).map(|_| prompt("the same", blocks)));
            assert_eq!(counts, [8; 8], "{strategy:?}, {blocks} blocks");
        }
    }
}

#[test]
fn a_burst_of_prompts_of_unlike_length_spreads_within_one() {
    for strategy in [Default, PrefixCache] {
        let counts =
            burst(strategy, (0..64).map(|number| format!("question {}", "x".repeat(number % 7 * 9))));
        assert!(counts.iter().all(|count| (7..=9).contains(count)), "{strategy:?}: {counts:?}");
    }
}

#[test]
fn a_burst_that_no_number_divides_spreads_within_one() {
    let counts = burst(PrefixCache, (0..61).map(|number| prompt(&number.to_string(), 3)));
    assert!(counts.iter().all(|count| (7..=8).contains(count)), "{counts:?}");
}

#[test]
fn equal_endpoints_take_turns_though_each_request_ends_before_the_next() {
    let mut service = Service::new(8, Default, 1);
    let mut counts = vec![0; 8];
    for number in 0..80 {
        let (endpoint, booking) = service.send(&prompt(&number.to_string(), 2));
        drop(booking);
        counts[endpoint] += 1;
    }
    assert_eq!(counts, [10; 8]);
}

#[test]
fn processes_that_start_together_do_not_start_with_the_same_endpoint() {
    let mut first = std::collections::HashSet::new();
    for seed in 0..64 {
        first.insert(Service::new(8, Default, seed).send("hello").0);
    }
    assert!(first.len() >= 6, "{first:?}");
}
