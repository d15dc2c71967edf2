//! Metrics pages as engines write them, and as liars do.

use endpoints::{CacheGeometry, EngineMetrics, LINE_BYTES_MAX, Lora, PageError, PageReader};
use pool::Runtime;
use proptest::prelude::*;

const VLLM_17: &str = include_str!("data/vllm-0.17-metrics.txt");
const VLLM_32_IDLE: &str = include_str!("data/vllm-0.32-metrics-idle.txt");
const VLLM_32_LOAD: &str = include_str!("data/vllm-0.32-metrics-underload.txt");
const VLLM_32_LORA: &str = include_str!("data/vllm-0.32-metrics-lora.txt");
const LLAMA_CPP: &str = include_str!("data/llamacpp-metrics.txt");

const SGLANG: &str = r#"# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{dp_rank="0",engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 3.0
sglang:num_running_reqs{dp_rank="1",engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 4.0
sglang:num_queue_reqs{dp_rank="0",engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 7.0
sglang:num_queue_reqs{dp_rank="1",engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.0
sglang:token_usage{dp_rank="0",model_name="m",tp_rank="0"} 0.25
sglang:token_usage{dp_rank="1",model_name="m",tp_rank="0"} 0.5
sglang:cache_config_info{dp_rank="0",model_name="m",num_pages="1000",page_size="16",tp_rank="0"} 1.0
sglang:cache_config_info{dp_rank="1",model_name="m",num_pages="1000",page_size="16",tp_rank="0"} 1.0
"#;

const TRITON: &str = r#"# HELP nv_trt_llm_request_metrics TRT LLM request metrics
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 5
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 7
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.375
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 3
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="free",model="tensorrt_llm",version="1"} 5
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 8
"#;

const TRTLLM_SERVE: &str = r#"# TYPE trtllm_num_requests_waiting gauge
trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 1.0
trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 6.0
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m"} 0.125
trtllm_kv_cache_tokens_per_block{engine_type="trtllm",model_name="m"} 32.0
trtllm_kv_cache_max_blocks{engine_type="trtllm",model_name="m"} 4096.0
"#;

fn read(runtime: Runtime, page: &str) -> Result<EngineMetrics, PageError> {
    let mut reader = PageReader::new(runtime);
    reader.feed(page.as_bytes())?;
    reader.finish()
}

/// A vLLM page with these values as they would be written.
fn vllm(waiting: &str, running: &str, usage: &str) -> String {
    format!(
        "vllm:num_requests_waiting{{engine=\"0\"}} {waiting}\nvllm:num_requests_running{{engine=\"0\"}} \
         {running}\nvllm:kv_cache_usage_perc{{engine=\"0\"}} {usage}\n"
    )
}

fn metrics(waiting: u32, running: u32, kv_usage_ratio: f32) -> EngineMetrics {
    EngineMetrics { waiting, running, kv_usage_ratio, ..EngineMetrics::default() }
}

fn geometry(block_size_tokens: u32, blocks: u32) -> Option<CacheGeometry> {
    Some(CacheGeometry { block_size_tokens, blocks })
}

#[test]
fn real_vllm_pages_are_read_exactly() {
    let tiny = |metrics| EngineMetrics { model_name: Some("tiny".into()), ..metrics };
    let idle_17 = EngineMetrics { cache: geometry(16, 280), ..tiny(metrics(0, 0, 0.0)) };
    assert_eq!(read(Runtime::Vllm, VLLM_17), Ok(idle_17));
    let idle_32 = EngineMetrics { cache: geometry(32, 140), ..tiny(metrics(0, 0, 0.0)) };
    assert_eq!(read(Runtime::Vllm, VLLM_32_IDLE), Ok(idle_32.clone()));
    let load_32 = EngineMetrics { cache: geometry(32, 140), ..tiny(metrics(25, 5, 0.841_726_6)) };
    assert_eq!(read(Runtime::Vllm, VLLM_32_LOAD), Ok(load_32));
    let lora_32 = EngineMetrics { lora: Some(Lora { max: 2, active: vec![] }), ..idle_32 };
    assert_eq!(read(Runtime::Vllm, VLLM_32_LORA), Ok(lora_32));
}

#[test]
fn the_newest_lora_series_wins_wherever_it_stands() {
    // While both adapters were in use the last line of the capture was not there yet.
    let earlier: String = VLLM_32_LORA
        .lines()
        .filter(|line| {
            !line.contains(r#"running_lora_adapters="","#) && !line.contains(r#"adapters="lora-a","#)
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let both = Lora { max: 2, active: vec!["lora-b".into(), "lora-a".into()] };
    assert_eq!(read(Runtime::Vllm, &earlier).unwrap().lora, Some(both.clone()));
    let reversed: Vec<&str> = earlier.lines().rev().collect();
    assert_eq!(read(Runtime::Vllm, &(reversed.join("\n") + "\n")).unwrap().lora, Some(both));
}

#[test]
fn running_and_waiting_adapters_are_joined_each_once() {
    let lora = r#"vllm:lora_requests_info{max_lora="4",running_lora_adapters="a, b",waiting_lora_adapters="b,c,"} 1.7e9"#;
    let page = vllm("0", "0", "0") + lora + "\n";
    let lora = Lora { max: 4, active: vec!["a".into(), "b".into(), "c".into()] };
    assert_eq!(read(Runtime::Vllm, &page).unwrap().lora, Some(lora));
}

#[test]
fn older_vllm_has_another_name_for_cache_use() {
    let page = vllm("1", "2", "0.5").replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc");
    let v0 = page.replace("engine=\"0\"", "model_name=\"m\"");
    assert_eq!(read(Runtime::Vllm, &page), Ok(metrics(1, 2, 0.5)));
    let named = EngineMetrics { model_name: Some("m".into()), ..metrics(1, 2, 0.5) };
    assert_eq!(read(Runtime::Vllm, &v0), Ok(named));
    assert_eq!(read(Runtime::Vllm, &(page.clone() + &vllm("1", "2", "0.5"))), Ok(metrics(1, 2, 0.5)));
}

#[test]
fn data_parallel_engines_on_one_page_add_up_and_the_fullest_cache_counts() {
    let info = |engine| {
        format!("vllm:cache_config_info{{engine=\"{engine}\",block_size=\"16\",num_gpu_blocks=\"100\"}} 1\n")
    };
    let second = vllm("3", "4", "0.75").replace("engine=\"0\"", "engine=\"1\"");
    let page = vllm("1", "2", "0.5") + &second + &info(0) + &info(1);
    let expected = EngineMetrics { cache: geometry(16, 200), ..metrics(4, 6, 0.75) };
    assert_eq!(read(Runtime::Vllm, &page), Ok(expected));
}

#[test]
fn sglang_ranks_add_up_and_workers_of_one_rank_do_not() {
    let expected =
        EngineMetrics { cache: geometry(16, 2000), model_name: Some("m".into()), ..metrics(7, 7, 0.5) };
    assert_eq!(read(Runtime::Sglang, SGLANG), Ok(expected.clone()));
    // With metrics of all schedulers each tensor-parallel worker tells its rank's queue again.
    let other_workers = SGLANG.replace("tp_rank=\"0\"", "tp_rank=\"1\"");
    assert_eq!(read(Runtime::Sglang, &(SGLANG.to_owned() + &other_workers)), Ok(expected));
}

#[test]
fn both_servers_of_tensorrt_llm_are_read() {
    let triton = EngineMetrics { cache: geometry(64, 8), ..metrics(2, 5, 0.375) };
    assert_eq!(read(Runtime::TrtLlm, TRITON), Ok(triton));
    let serve =
        EngineMetrics { cache: geometry(32, 4096), model_name: Some("m".into()), ..metrics(1, 6, 0.125) };
    assert_eq!(read(Runtime::TrtLlm, TRTLLM_SERVE), Ok(serve));
}

#[test]
fn a_cache_that_is_not_sized_yet_is_no_fault() {
    for labels in [
        r#"block_size="16",num_gpu_blocks="None""#,
        r#"num_gpu_blocks="10""#,
        r#"block_size="0",num_gpu_blocks="10""#,
    ] {
        let page = vllm("0", "0", "0") + "vllm:cache_config_info{" + labels + "} 1\n";
        assert_eq!(read(Runtime::Vllm, &page), Ok(metrics(0, 0, 0.0)), "{labels}");
    }
}

#[test]
fn values_that_cannot_be_are_errors_and_never_zero() {
    for value in ["NaN", "+Inf", "-Inf", "-1", "1e30", "1000000001", "-0.5"] {
        for page in [vllm(value, "0", "0"), vllm("0", value, "0"), vllm("0", "0", value)] {
            assert!(matches!(read(Runtime::Vllm, &page), Err(PageError::BadValue { .. })), "{page}");
        }
    }
    assert!(matches!(read(Runtime::Vllm, &vllm("0", "0", "1.001")), Err(PageError::BadValue { .. })));
    assert_eq!(read(Runtime::Vllm, &vllm("1e9", "0", "1.00005")), Ok(metrics(1_000_000_000, 0, 1.0)));
    let second = vllm("NaN", "0", "0").replace("engine=\"0\"", "engine=\"1\"");
    assert!(matches!(read(Runtime::Vllm, &(vllm("0", "0", "0") + &second)), Err(PageError::BadValue { .. })));
}

#[test]
fn an_error_names_the_series_and_the_value() {
    let error = read(Runtime::Vllm, &vllm("NaN", "0", "0")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vllm:num_requests_waiting is NaN: expected a finite number from 0 to 1000000000"
    );
}

#[test]
fn the_wrong_page_is_told_from_an_idle_one() {
    let html = "<!DOCTYPE html>\n<html><body>vllm:num_requests_waiting 0</body></html>\n";
    for (runtime, page) in [
        (Runtime::Vllm, LLAMA_CPP),
        (Runtime::Vllm, ""),
        (Runtime::Vllm, html),
        (Runtime::Vllm, SGLANG),
        (Runtime::Sglang, VLLM_32_IDLE),
        (Runtime::TrtLlm, VLLM_32_IDLE),
    ] {
        assert!(matches!(read(runtime, page), Err(PageError::MissingSeries { .. })), "{runtime:?}");
    }
    assert_eq!(
        read(Runtime::Vllm, LLAMA_CPP).unwrap_err().to_string(),
        "no vllm:num_requests_waiting, vllm:num_requests_running, vllm:kv_cache_usage_perc or \
         vllm:gpu_cache_usage_perc in a page of 2587 bytes: is model-server-runtime right?"
    );
}

#[test]
fn a_page_cut_short_is_an_error() {
    let at = VLLM_32_LOAD.find("vllm:kv_cache_usage_perc").unwrap();
    let error = read(Runtime::Vllm, &VLLM_32_LOAD[..at]).unwrap_err();
    assert!(
        matches!(&error, PageError::MissingSeries { missing, .. } if missing.contains("kv_cache")),
        "{error}"
    );
    let waiting = VLLM_32_LOAD.find("\nvllm:num_requests_waiting{").unwrap();
    let error = read(Runtime::Vllm, &VLLM_32_LOAD[..waiting + 40]).unwrap_err();
    assert!(matches!(error, PageError::Malformed { series: "vllm:num_requests_waiting", .. }), "{error}");
    // Cut within a number it would be another number.
    let page = vllm("1", "2", "0") + "vllm:num_requests_waiting{engine=\"1\"} 25";
    assert_eq!(read(Runtime::Vllm, &(page.clone() + "\n")), Ok(metrics(26, 2, 0.0)));
    let error = read(Runtime::Vllm, &page).unwrap_err();
    assert_eq!(error.to_string(), "vllm:num_requests_waiting: the page ends before the line does");
}

#[test]
fn malformed_lines_matter_only_where_they_are_needed() {
    let good = vllm("1", "2", "0.5");
    for noise in
        ["{", "}{", "vllm:other{a=\"", "other", "\u{fffd} 1", "# TYPE", "a{b=} x", "\"quoted name\" 1"]
    {
        assert_eq!(
            read(Runtime::Vllm, &format!("{noise}\n{good}{noise}")),
            Ok(metrics(1, 2, 0.5)),
            "{noise}"
        );
    }
    for bad in
        ["", "{ 1", "{} x", "{a=b} 1", "{a=\"b} 1", "{a=\"b\"} ", " 1 2 3", " 0x10", "{a=\"b\"c=\"d\"} 1"]
    {
        let page = format!("{good}vllm:num_requests_waiting{bad}\n");
        let read = read(Runtime::Vllm, &page);
        // A bare name is not a sample at all; anything else that bears the name must be one.
        if bad.is_empty() {
            assert_eq!(read, Ok(metrics(1, 2, 0.5)));
        } else {
            assert!(matches!(read, Err(PageError::Malformed { .. })), "{bad}: {read:?}");
        }
    }
}

#[test]
fn forms_that_the_format_allows_are_read() {
    let page = "  vllm:num_requests_waiting\t{ engine = \"0\" , } 3 1700000000000\r\n\
                vllm:num_requests_running 4e0 # {trace=\"x\"} 1\n\
                vllm:kv_cache_usage_perc{engine=\"a\\\"b\\\\\\n}\"}   .5 1.7e9 # {a=\"b\"} 1\n";
    assert_eq!(read(Runtime::Vllm, page), Ok(metrics(3, 4, 0.5)));
}

#[test]
fn a_line_without_end_and_ranks_without_number_are_refused() {
    let long = "x".repeat(LINE_BYTES_MAX);
    assert_eq!(read(Runtime::Vllm, &(long.clone() + "\n" + &vllm("0", "0", "0"))), Ok(metrics(0, 0, 0.0)));
    let mut reader = PageReader::new(Runtime::Vllm);
    reader.feed(long.as_bytes()).unwrap();
    assert!(matches!(reader.feed(b"x"), Err(PageError::Line(_))));
    let ranks: String =
        (0..300).map(|rank| format!("vllm:num_requests_waiting{{engine=\"{rank}\"}} 0\n")).collect();
    assert!(matches!(read(Runtime::Vllm, &ranks), Err(PageError::TooManyRanks { .. })));
}

#[test]
fn a_lora_limit_that_is_no_number_is_an_error() {
    let page = vllm("0", "0", "0") + "vllm:lora_requests_info{max_lora=\"many\"} 1\n";
    assert!(matches!(read(Runtime::Vllm, &page), Err(PageError::BadLabel { label: "max_lora", .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn where_a_page_is_cut_makes_no_difference(cuts in prop::collection::vec(0..VLLM_32_LORA.len(), 0..40)) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let mut reader = PageReader::new(Runtime::Vllm);
        let mut from = 0;
        for to in cuts.into_iter().chain([VLLM_32_LORA.len()]) {
            reader.feed(&VLLM_32_LORA.as_bytes()[from..to]).unwrap();
            from = to;
        }
        prop_assert_eq!(reader.finish(), read(Runtime::Vllm, VLLM_32_LORA));
    }

    #[test]
    fn any_bytes_are_read_without_panic(page in prop::collection::vec(any::<u8>(), 0..2000)) {
        for runtime in [Runtime::Vllm, Runtime::Sglang, Runtime::TrtLlm] {
            let mut reader = PageReader::new(runtime);
            if reader.feed(&page).is_ok() {
                let is_missing = matches!(reader.finish(), Err(PageError::MissingSeries { .. }));
                prop_assert!(is_missing);
            }
        }
    }
}

#[test]
fn a_page_byte_by_byte_is_the_same_page() {
    let mut reader = PageReader::new(Runtime::Vllm);
    for byte in VLLM_32_LOAD.as_bytes() {
        reader.feed(&[*byte]).unwrap();
    }
    assert_eq!(reader.finish(), read(Runtime::Vllm, VLLM_32_LOAD));
}
