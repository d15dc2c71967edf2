//! Behaviour of the engine on virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{Config, End, Engine, Event, EventKind, Request, SubmitError, sequence::Sequence};

/// 10 ms a step, 0.1 ms a prompt token, 1 ms a decoding sequence, nothing drawn by lot.
fn exact() -> Config {
    Config { decode_us_per_seq: 1_000.0, jitter_ratio: 0.0, lora_load_ms: 50.0, ..Config::default() }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A request whose blocks are hashed by `content` and position.
fn request(id: u64, content: u64, prompt_tokens: u32, output_tokens: u32) -> Request {
    let blocks = u64::from((prompt_tokens + output_tokens) / 16);
    let block_hashes = (0..blocks).map(|block| content * 1_000_000 + block).collect();
    Request { id, prompt_tokens, output_tokens, block_hashes, adapter: None, end: End::Length }
}

fn with_adapter(request: Request, adapter: &str) -> Request {
    Request { adapter: Some(Arc::from(adapter)), ..request }
}

fn drain(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(at) = engine.next_event_at() {
        engine.advance(at, &mut events);
        engine.pool.check();
    }
    events
}

/// When each token of `id` came.
fn tokens_of(events: &[Event], id: u64) -> Vec<u128> {
    let tokens =
        events.iter().filter(|event| event.id == id && !matches!(event.kind, EventKind::Finished { .. }));
    tokens.map(|event| event.at.as_millis()).collect()
}

fn ids<'a>(sequences: impl Iterator<Item = &'a Sequence>) -> Vec<u64> {
    sequences.map(|sequence| sequence.request.id).collect()
}

fn cached_of(events: &[Event], id: u64) -> u32 {
    let finished = events.iter().filter(|event| event.id == id).find_map(|event| match event.kind {
        EventKind::Finished { cached_tokens } => Some(cached_tokens),
        _ => None,
    });
    finished.expect("it finished")
}

#[test]
fn a_lone_request_pays_for_its_prompt_and_then_for_each_step() {
    let mut engine = Engine::new(exact(), 0);
    engine.submit(ms(5), request(1, 1, 100, 3)).unwrap();
    assert_eq!(engine.next_event_at(), Some(ms(5)));
    let events = drain(&mut engine);
    assert_eq!(tokens_of(&events, 1), [25, 36, 47], "5 + 10 + 100 x 0.1, then 10 + 1 each");
    assert_eq!(events[0].kind, EventKind::FirstToken { cached_tokens: 0 });
    assert_eq!(events[3].kind, EventKind::Finished { cached_tokens: 0 });
    assert_eq!((engine.running(), engine.waiting(), engine.kv_blocks_used()), (0, 0, 0));
    assert_eq!(engine.next_event_at(), None);
}

#[test]
fn sequences_share_a_step_and_pay_for_it_together() {
    let mut engine = Engine::new(exact(), 0);
    for id in 0..4 {
        engine.submit(ms(0), request(id, id, 50, 3)).unwrap();
    }
    let events = drain(&mut engine);
    for id in 0..4 {
        assert_eq!(tokens_of(&events, id), [30, 44, 58], "10 + 200 x 0.1, then 10 + 4 each");
    }
}

#[test]
fn a_request_that_comes_during_a_step_waits_for_its_end() {
    let mut engine = Engine::new(exact(), 0);
    engine.submit(ms(0), request(1, 1, 100, 2)).unwrap();
    engine.submit(ms(1), request(2, 2, 100, 1)).unwrap();
    assert_eq!((engine.running(), engine.waiting()), (1, 1));
    let events = drain(&mut engine);
    assert_eq!(tokens_of(&events, 1), [20, 41], "its decode shares a step with the other's prompt");
    assert_eq!(tokens_of(&events, 2), [41]);
}

#[test]
fn a_long_prompt_is_cut_into_chunks_and_decoding_goes_on_beside_it() {
    let mut engine = Engine::new(Config { max_num_batched_tokens: 101, ..exact() }, 0);
    engine.submit(ms(0), request(1, 1, 10, 5)).unwrap();
    let mut events = Vec::new();
    engine.advance(ms(11), &mut events);
    engine.submit(ms(11), request(2, 2, 250, 1)).unwrap();
    events.extend(drain(&mut engine));
    // The decode's step begins at 11 without the newcomer, then 100 + 100 + 50 tokens ride along.
    assert_eq!(tokens_of(&events, 1), [11, 22, 43, 64, 80]);
    assert_eq!(tokens_of(&events, 2), [80]);
}

#[test]
fn max_num_seqs_bounds_the_batch_and_the_queue_is_first_come_first_served() {
    let mut engine = Engine::new(Config { max_num_seqs: 2, ..exact() }, 0);
    for id in 0..5 {
        engine.submit(ms(0), request(id, id, 10, 2)).unwrap();
    }
    engine.advance(ms(0), &mut Vec::new());
    assert_eq!((engine.running(), engine.waiting()), (2, 3));
    let events = drain(&mut engine);
    let order: Vec<u64> =
        events.iter().filter(|e| matches!(e.kind, EventKind::FirstToken { .. })).map(|e| e.id).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
}

#[test]
fn a_cached_prefix_costs_nothing_and_its_last_token_is_computed_again() {
    let mut engine = Engine::new(exact(), 0);
    engine.submit(ms(0), request(1, 7, 160, 1)).unwrap();
    drain(&mut engine);
    engine.submit(ms(100), request(2, 7, 160, 1)).unwrap();
    let events = drain(&mut engine);
    assert_eq!(cached_of(&events, 2), 144, "nine of ten full blocks: the last token gives the next one");
    assert_eq!(events[0].at, ms(100) + Duration::from_micros(11_600), "10 + 16 x 0.1");
    assert_eq!((engine.stats().prefix_queries, engine.stats().prefix_hits), (320, 144));
    assert_eq!((engine.stats().prompt_tokens, engine.stats().cached_tokens), (320, 144));
}

#[test]
fn an_answer_is_shared_with_the_next_turn_of_the_conversation() {
    let mut engine = Engine::new(exact(), 0);
    engine.submit(ms(0), request(1, 7, 32, 40)).unwrap();
    drain(&mut engine);
    engine.submit(ms(1_000), request(2, 7, 100, 1)).unwrap();
    let events = drain(&mut engine);
    assert_eq!(cached_of(&events, 2), 64, "32 of prompt and 39 of 40 of answer computed: four full blocks");
}

#[test]
fn blocks_are_shared_from_the_end_of_the_step_that_computes_them() {
    let mut engine = Engine::new(exact(), 0);
    engine.submit(ms(0), request(1, 7, 64, 1)).unwrap();
    engine.submit(ms(0), request(2, 7, 64, 1)).unwrap();
    engine.submit(ms(1), request(3, 7, 64, 1)).unwrap();
    let events = drain(&mut engine);
    assert_eq!([1, 2, 3].map(|id| cached_of(&events, id)), [0, 0, 48]);
}

#[test]
fn without_prefix_caching_nothing_is_shared() {
    let mut engine = Engine::new(Config { enable_prefix_caching: false, ..exact() }, 0);
    for id in 0..2 {
        engine.submit(ms(id * 100), request(id, 7, 160, 1)).unwrap();
        assert_eq!(cached_of(&drain(&mut engine), id), 0);
    }
    assert_eq!(engine.stats().prefix_hits, 0);
}

#[test]
fn the_least_recently_used_prefix_is_evicted() {
    let mut engine = Engine::new(Config { num_gpu_blocks: 20, ..exact() }, 0);
    let mut at = 0;
    let mut ask = |engine: &mut Engine, content| {
        at += 1_000;
        engine.submit(ms(at), request(at, content, 128, 1)).unwrap();
        cached_of(&drain(engine), at)
    };
    assert_eq!((ask(&mut engine, 1), ask(&mut engine, 2)), (0, 0));
    assert_eq!(ask(&mut engine, 1), 112, "1 is now the more recently used");
    assert_eq!(ask(&mut engine, 3), 0, "takes the place of 2");
    assert_eq!(ask(&mut engine, 1), 112);
    assert!(ask(&mut engine, 2) < 112);
}

#[test]
fn requests_wait_for_kv_blocks_and_usage_says_so() {
    let mut engine = Engine::new(Config { num_gpu_blocks: 10, ..exact() }, 0);
    engine.submit(ms(0), request(1, 1, 96, 2)).unwrap();
    engine.submit(ms(0), request(2, 2, 96, 2)).unwrap();
    engine.advance(ms(1), &mut Vec::new());
    assert_eq!((engine.running(), engine.waiting(), engine.kv_blocks_used()), (1, 1, 6));
    assert_eq!(engine.kv_usage_ratio(), 0.6);
    let events = drain(&mut engine);
    assert!(tokens_of(&events, 2)[0] > tokens_of(&events, 1)[1]);
    assert_eq!(engine.stats().preemptions, 0);
}

#[test]
fn the_youngest_is_thrown_out_when_blocks_run_out_and_loses_no_token() {
    let mut engine = Engine::new(Config { num_gpu_blocks: 8, enable_prefix_caching: false, ..exact() }, 0);
    engine.submit(ms(0), request(1, 1, 48, 60)).unwrap();
    engine.submit(ms(0), request(2, 2, 48, 60)).unwrap();
    let events = drain(&mut engine);
    assert!(engine.stats().preemptions >= 1);
    assert_eq!((tokens_of(&events, 1).len(), tokens_of(&events, 2).len()), (60, 60));
    assert!(tokens_of(&events, 1)[59] < tokens_of(&events, 2)[59], "the older never gave way");
    assert_eq!(engine.stats().generation_tokens, 120);
    assert_eq!(engine.stats().prefix_queries, 96, "computing again is not another query");
}

#[test]
fn one_thrown_out_is_the_next_to_be_admitted_but_not_by_the_same_step() {
    let config = Config {
        num_gpu_blocks: 8,
        max_num_seqs: 2,
        max_num_batched_tokens: 16,
        enable_prefix_caching: false,
        ..exact()
    };
    let mut engine = Engine::new(config, 0);
    for id in 1..=3 {
        engine.submit(ms(0), request(id, id, 48, 60)).unwrap();
    }
    while engine.stats().preemptions == 0 {
        let at = engine.next_event_at().expect("blocks run out before the end");
        engine.advance(at, &mut Vec::new());
    }
    assert_eq!(ids(engine.running.iter()), [1], "though a first chunk would fit again");
    assert_eq!(ids(engine.waiting.iter()), [2, 3]);
}

#[test]
fn a_prompt_of_one_token_is_a_prompt() {
    let mut engine = Engine::new(exact(), 0);
    engine.submit(ms(0), request(1, 1, 1, 1)).unwrap();
    assert_eq!(drain(&mut engine)[0].at, Duration::from_micros(10_100));
}

#[test]
fn cancelling_frees_blocks_at_once_wherever_the_request_is() {
    let mut engine = Engine::new(Config { max_num_seqs: 1, ..exact() }, 0);
    engine.submit(ms(0), request(1, 1, 64, 10)).unwrap();
    engine.submit(ms(0), request(2, 2, 64, 10)).unwrap();
    engine.advance(ms(1), &mut Vec::new());
    assert_eq!(engine.kv_blocks_used(), 4);
    assert!(engine.cancel(ms(2), 1) && engine.cancel(ms(2), 2));
    assert!(!engine.cancel(ms(2), 1), "only once");
    assert_eq!((engine.kv_blocks_used(), engine.running(), engine.waiting()), (0, 0, 0));
    assert!(drain(&mut engine).is_empty(), "nothing is heard of them again");
    assert_eq!(engine.stats().finished_abort, 2);
}

#[test]
fn what_cannot_ever_fit_is_refused_and_so_is_one_too_many() {
    let mut engine = Engine::new(Config { num_gpu_blocks: 4, max_num_queued_reqs: 1, ..exact() }, 0);
    let refused = engine.submit(ms(0), request(1, 1, 60, 5));
    assert_eq!(refused, Err(SubmitError::TooLong { tokens: 65, tokens_max: 64 }));
    engine.submit(ms(0), request(2, 1, 60, 4)).unwrap();
    assert_eq!(engine.submit(ms(0), request(3, 1, 1, 1)), Err(SubmitError::QueueFull { waiting: 1 }));
    assert_eq!(engine.stats().queue_refusals, 1);
    let overflow = Request { prompt_tokens: u32::MAX, output_tokens: u32::MAX, ..request(4, 1, 1, 1) };
    assert!(matches!(engine.submit(ms(0), overflow), Err(SubmitError::TooLong { .. })));
}

#[test]
fn an_embedding_ends_with_its_prompt_and_has_no_token() {
    let mut engine = Engine::new(exact(), 0);
    engine.submit(ms(0), request(1, 1, 50, 0)).unwrap();
    let events = drain(&mut engine);
    assert_eq!(events, [Event { at: ms(15), id: 1, kind: EventKind::Finished { cached_tokens: 0 } }]);
}

#[test]
fn an_adapter_is_loaded_once_and_a_third_waits_for_a_slot_without_blocking_others() {
    let mut engine = Engine::new(Config { max_loras: 2, ..exact() }, 0);
    engine.submit(ms(0), with_adapter(request(1, 1, 10, 3), "a")).unwrap();
    engine.submit(ms(0), with_adapter(request(2, 2, 10, 3), "b")).unwrap();
    engine.submit(ms(0), with_adapter(request(3, 3, 10, 1), "c")).unwrap();
    engine.submit(ms(0), request(4, 4, 10, 1)).unwrap();
    engine.advance(ms(0), &mut Vec::new());
    assert_eq!((engine.running(), engine.waiting_deferred()), (3, 1));
    let now = engine.lora_history().last().unwrap();
    assert_eq!((now.running.join(","), now.waiting.join(",")), ("a,b".into(), "c".into()));

    let events = drain(&mut engine);
    assert_eq!(tokens_of(&events, 4), [113], "10 + 2 x 50 of loading + 30 x 0.1");
    assert_eq!(tokens_of(&events, 1), [113, 125, 137], "loaded once");
    assert_eq!(tokens_of(&events, 3), [137 + 61]);
    let last = engine.lora_history().iter().max_by_key(|state| state.at).unwrap();
    assert!(last.running.is_empty() && last.waiting.is_empty());
    engine.submit(ms(1_000), with_adapter(request(5, 5, 10, 1), "b")).unwrap();
    assert_eq!(tokens_of(&drain(&mut engine), 5), [1_011], "still resident");
}

#[test]
fn those_passed_over_for_want_of_a_slot_keep_their_place() {
    let mut engine = Engine::new(Config { max_loras: 1, max_num_seqs: 2, ..exact() }, 0);
    engine.submit(ms(0), with_adapter(request(0, 0, 10, 9), "a")).unwrap();
    engine.submit(ms(0), with_adapter(request(1, 1, 10, 9), "b")).unwrap();
    engine.submit(ms(0), with_adapter(request(2, 2, 10, 9), "c")).unwrap();
    engine.submit(ms(0), request(3, 3, 10, 9)).unwrap();
    engine.submit(ms(0), request(4, 4, 10, 9)).unwrap();
    engine.advance(ms(0), &mut Vec::new());
    let ids =
        |sequences: Vec<&Sequence>| sequences.iter().map(|sequence| sequence.request.id).collect::<Vec<_>>();
    assert_eq!(ids(engine.running.iter().collect()), [0, 3]);
    assert_eq!(ids(engine.waiting.iter().collect()), [1, 2, 4]);
}

#[test]
fn speed_divides_every_time() {
    let mut engine = Engine::new(Config { speed: 10.0, ..exact() }, 0);
    engine.submit(ms(0), request(1, 1, 100, 2)).unwrap();
    let events = drain(&mut engine);
    assert_eq!((events[0].at, events[1].at), (Duration::from_micros(2_000), Duration::from_micros(3_100)));
}

#[test]
fn senseless_configurations_still_make_progress() {
    let nothing = Config {
        block_size: 0,
        num_gpu_blocks: 0,
        max_num_seqs: 0,
        max_num_batched_tokens: 0,
        max_model_len: 0,
        max_loras: 0,
        step_base_us: f64::NAN,
        prefill_us_per_token: -1.0,
        decode_us_per_seq: f64::INFINITY,
        jitter_ratio: 7.0,
        speed: 0.0,
        ..Config::default()
    };
    let mut engine = Engine::new(nothing, 0);
    let lone = Request { block_hashes: Vec::new(), ..request(1, 1, 1, 0) };
    engine.submit(ms(0), with_adapter(lone, "a")).unwrap();
    assert_eq!(drain(&mut engine).len(), 1);
}

#[test]
fn time_told_backwards_stands_still() {
    let mut engine = Engine::new(exact(), 0);
    engine.advance(ms(100), &mut Vec::new());
    engine.submit(ms(1), request(1, 1, 100, 1)).unwrap();
    assert_eq!(tokens_of(&drain(&mut engine), 1), [120]);
}

#[test]
fn histograms_say_what_the_events_say() {
    let mut engine = Engine::new(exact(), 0);
    engine.submit(ms(0), request(1, 1, 100, 3)).unwrap();
    drain(&mut engine);
    let stats = engine.stats();
    assert_eq!((stats.first_token.count(), stats.inter_token.count(), stats.request.count()), (1, 2, 1));
    assert!((stats.first_token.sum - 0.020).abs() < 1e-9);
    assert!((stats.inter_token.sum - 0.022).abs() < 1e-9);
    assert!((stats.request.sum - 0.042).abs() < 1e-9);
    assert_eq!((stats.finished_length, stats.finished_stop), (1, 0));
    assert_eq!(stats.step_tokens.sum, 102.0);
}

/// One call on an engine, some time after the one before.
#[derive(Debug, Clone)]
enum Call {
    Submit { content: u64, prompt: u32, output: u32, adapter: u8 },
    Cancel { which: prop::sample::Index },
    Advance,
}

fn calls() -> impl Strategy<Value = Vec<(u64, Call)>> {
    let call = prop_oneof![
        4 => (0..4_u64, 0..120_u32, 0..40_u32, 0..5_u8)
            .prop_map(|(content, prompt, output, adapter)| Call::Submit { content, prompt, output, adapter }),
        1 => any::<prop::sample::Index>().prop_map(|which| Call::Cancel { which }),
        2 => Just(Call::Advance),
    ];
    prop::collection::vec((0..60_u64, call), 1..80)
}

/// What became of each request, by a book kept outside the engine.
fn play(
    config: Config,
    seed: u64,
    calls: &[(u64, Call)],
) -> (Engine, Vec<Event>, BTreeMap<u64, u32>, BTreeSet<u64>) {
    let mut engine = Engine::new(config, seed);
    let (mut events, mut submitted, mut cancelled) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    let mut now = Duration::ZERO;
    for (id, (wait_ms, call)) in (0..).zip(calls) {
        now += ms(*wait_ms);
        match call {
            Call::Submit { content, prompt, output, adapter } => {
                let plain = request(id, *content, *prompt, *output);
                let asked = if *adapter > 0 { with_adapter(plain, &adapter.to_string()) } else { plain };
                if engine.submit(now, asked).is_ok() {
                    submitted.insert(id, *output);
                }
            }
            Call::Cancel { which } if !submitted.is_empty() => {
                let id = *submitted.keys().nth(which.index(submitted.len())).expect("in range");
                if engine.cancel(now, id) {
                    assert!(cancelled.insert(id), "{id} cancelled twice");
                }
            }
            Call::Cancel { .. } => {}
            Call::Advance => engine.advance(now, &mut events),
        }
        engine.pool.check();
        let held: u64 = engine.running.iter().map(|sequence| sequence.blocks.len() as u64).sum();
        assert_eq!(engine.pool.references(), held, "only running sequences hold blocks");
        assert!(engine.waiting.iter().all(|sequence| sequence.blocks.is_empty()));
    }
    events.extend(drain(&mut engine));
    (engine, events, submitted, cancelled)
}

fn tight() -> impl Strategy<Value = Config> {
    (9..40_u32, 1..6_u32, 1..64_u32, 1..3_u32, any::<bool>()).prop_map(
        |(num_gpu_blocks, max_num_seqs, max_num_batched_tokens, max_loras, enable_prefix_caching)| Config {
            num_gpu_blocks,
            max_num_seqs,
            max_num_batched_tokens,
            max_loras,
            enable_prefix_caching,
            ..Config::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_exactly_once_and_no_block_leaks(config in tight(), calls in calls()) {
        let (engine, events, submitted, cancelled) = play(config, 1, &calls);
        prop_assert_eq!((engine.running(), engine.waiting(), engine.kv_blocks_used()), (0, 0, 0));
        let finished: Vec<u64> = events
            .iter()
            .filter(|event| matches!(event.kind, EventKind::Finished { .. }))
            .map(|event| event.id)
            .collect();
        let unique: BTreeSet<u64> = finished.iter().copied().collect();
        prop_assert_eq!(unique.len(), finished.len(), "finished twice");
        let ended: BTreeSet<u64> = unique.union(&cancelled).copied().collect();
        prop_assert_eq!(ended, submitted.keys().copied().collect::<BTreeSet<_>>());
        // A request may finish before the caller hears of it and cancels; never both once the engine agreed.
        prop_assert!(unique.is_disjoint(&cancelled));
        for (id, output) in &submitted {
            let tokens = tokens_of(&events, *id).len() as u32;
            prop_assert!(tokens == *output || cancelled.contains(id) && tokens < *output);
        }
        prop_assert!(events.is_sorted_by_key(|event| event.at));
        let stats = engine.stats();
        prop_assert_eq!(stats.finished_length as usize, unique.len());
        prop_assert_eq!(stats.finished_abort as usize, cancelled.len());
        prop_assert!(stats.prefix_hits <= stats.prefix_queries);
    }

    #[test]
    fn the_same_calls_give_the_same_log(config in tight(), calls in calls(), seed in any::<u64>()) {
        let log = |seed| {
            let mut hasher = DefaultHasher::new();
            play(config.clone(), seed, &calls).1.hash(&mut hasher);
            hasher.finish()
        };
        prop_assert_eq!(log(seed), log(seed));
    }

    #[test]
    fn when_the_caller_looks_does_not_change_what_happens(config in tight(), calls in calls()) {
        // Never at the very instant of another call: requests of one instant share a step unless time ran between.
        let look = |(wait, call): &(u64, Call)| match wait / 2 {
            0 => vec![(*wait, call.clone())],
            half => vec![(half, Call::Advance), (wait - half, call.clone())],
        };
        let calls: Vec<_> = calls.into_iter().filter(|(_, call)| !matches!(call, Call::Advance)).collect();
        let looking: Vec<_> = calls.iter().flat_map(look).collect();
        let ids = |events: Vec<Event>| -> Vec<_> { events.iter().map(|event| (event.at, event.kind)).collect() };
        prop_assert_eq!(ids(play(config.clone(), 3, &calls).1), ids(play(config, 3, &looking).1));
    }
}

#[test]
fn another_seed_gives_other_times() {
    let times = |seed| {
        let mut engine = Engine::new(Config::default(), seed);
        engine.submit(ms(0), request(1, 1, 100, 5)).unwrap();
        drain(&mut engine).iter().map(|event| event.at).collect::<Vec<_>>()
    };
    assert_eq!(times(1), times(1));
    assert_ne!(times(1), times(2));
}
