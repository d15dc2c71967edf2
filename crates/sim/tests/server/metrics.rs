//! The metrics pages, held against a page of a real vLLM 0.32 and against the names that the other engines print.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use sim::{
    engine::Config,
    server::{EngineKind, ServerConfig, TrtLlmPage},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    client::{get, post, post_text},
    eventually, fast, run, slow,
};

/// Captured from a real server with two LoRA adapters; the crate that reads such pages keeps it.
const REAL: &str = include_str!("../../../endpoints/tests/data/vllm-0.32-metrics-lora.txt");

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

#[derive(Debug, Default)]
struct Page {
    samples: Vec<Sample>,
    /// Families in order, with their types.
    types: Vec<(String, String)>,
}

impl Page {
    /// Reads a page and insists on its grammar: a family's two lines, then its samples, nothing else.
    fn parse(text: &str) -> Self {
        let mut page = Self::default();
        let mut help = "";
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split_once(' ').expect("a help text").0;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert_eq!(name, help, "HELP before TYPE");
                assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
                page.types.push((name.to_owned(), kind.to_owned()));
            } else {
                let sample = sample(line);
                let (family, kind) = page.types.last().expect("a family");
                let suffix =
                    sample.name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} in {family}"));
                let expected: &[&str] = if matches!(&**kind, "histogram" | "summary") {
                    &["_bucket", "_count", "_sum"]
                } else {
                    &[""]
                };
                assert!(expected.contains(&suffix), "{line} in {family}");
                page.samples.push(sample);
            }
        }
        page
    }

    /// The label names of each series name.
    fn label_names(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        self.samples
            .iter()
            .map(|sample| (sample.name.as_str(), sample.labels.keys().map(String::as_str).collect()))
            .collect()
    }

    /// The values of a label over all series of a name.
    fn values_of(&self, name: &str, label: &str) -> Vec<&str> {
        let samples = self.samples.iter().filter(|sample| sample.name == name);
        samples.filter_map(|sample| sample.labels.get(label).map(String::as_str)).collect()
    }

    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|given| given == value))
        };
        let mut found = self.samples.iter().filter(wanted);
        let value = found.next().unwrap_or_else(|| panic!("no {name} {labels:?}")).value;
        assert!(found.next().is_none(), "{name} {labels:?} is there more than once");
        value
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').expect("a closing brace")),
    };
    assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte)), "{line}");
    let mut pairs = BTreeMap::new();
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").expect("a label");
        let (value, after) = after.split_once('"').expect("a closing quote");
        assert!(pairs.insert(label.to_owned(), value.to_owned()).is_none(), "{label} twice in {line}");
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Sample {
        name: name.to_owned(),
        labels: pairs,
        value: value.replace("Inf", "inf").parse().expect("a number"),
    }
}

/// As the real server of the capture was set up.
fn like_the_capture() -> ServerConfig {
    let engine =
        Config { block_size: 32, num_gpu_blocks: 140, max_model_len: 4096, max_loras: 2, ..fast().engine };
    ServerConfig { engine, ..fast() }
}

async fn ask(server: &super::Running, model: &str, tokens: u32) {
    let ask = json!({"model": model, "prompt": vec![7; 200], "max_tokens": tokens, "ignore_eos": true});
    assert_eq!(post(server.addr(), "/v1/completions", &ask).await.status, 200);
}

#[tokio::test]
async fn vllms_page_has_the_families_series_labels_and_buckets_of_a_real_one() {
    let server = run(like_the_capture()).await;
    ask(&server, "lora-a", 4).await;
    ask(&server, "lora-b", 4).await;
    let answer = get(server.addr(), "/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let (ours, real) = (Page::parse(&answer.body), Page::parse(REAL));

    let vllms: Vec<_> = real.types.iter().filter(|(name, _)| name.starts_with("vllm:")).cloned().collect();
    assert_eq!(ours.types, vllms, "the same families and types in the same order");
    let real_labels = real.label_names();
    for (name, labels) in ours.label_names() {
        assert_eq!(Some(&labels), real_labels.get(name), "{name}");
    }
    for (name, _) in &ours.types {
        let bucket = format!("{name}_bucket");
        assert_eq!(ours.values_of(&bucket, "le"), real.values_of(&bucket, "le"), "{name}");
    }
    for label in ["reason", "source", "finished_reason", "sleep_state"] {
        for (name, _) in &ours.types {
            assert_eq!(ours.values_of(name, label), real.values_of(name, label), "{name}");
        }
    }
    // A family's labels stand in the same order on the line.
    let line = |page: &str, start: &str| -> Vec<String> {
        let line = page.lines().find(|line| line.starts_with(start)).unwrap();
        line.split(['{', ',']).filter_map(|part| Some(part.split_once("=\"")?.0.to_owned())).collect()
    };
    for start in
        ["vllm:cache_config_info{", "vllm:request_success_total{", "vllm:e2e_request_latency_seconds_bucket{"]
    {
        assert_eq!(line(&answer.body, start), line(REAL, start));
    }
}

#[tokio::test]
async fn the_geometry_of_the_cache_is_on_the_page() {
    let server = run(like_the_capture()).await;
    let page = Page::parse(&get(server.addr(), "/metrics").await.body);
    let real = Page::parse(REAL);
    for label in ["block_size", "num_gpu_blocks", "kv_cache_size_tokens", "kv_cache_max_concurrency"] {
        let name = "vllm:cache_config_info";
        assert_eq!(page.values_of(name, label), real.values_of(name, label), "{label}");
    }
}

#[tokio::test]
async fn without_adapters_there_is_no_lora_family() {
    let server = run(ServerConfig { adapters: Vec::new(), ..fast() }).await;
    assert!(!get(server.addr(), "/metrics").await.body.contains("lora_requests_info"));
}

#[tokio::test]
async fn the_newest_lora_series_is_the_present_and_values_are_times() {
    let server = run(like_the_capture()).await;
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    ask(&server, "lora-a", 4).await;
    let page = Page::parse(&get(server.addr(), "/metrics").await.body);
    let series: Vec<&Sample> =
        page.samples.iter().filter(|sample| sample.name == "vllm:lora_requests_info").collect();
    let newest = series.iter().max_by(|one, other| one.value.total_cmp(&other.value)).unwrap();
    assert_eq!((&*newest.labels["running_lora_adapters"], &*newest.labels["max_lora"]), ("", "2"));
    let with_a = series.iter().find(|sample| sample.labels["running_lora_adapters"] == "lora-a").unwrap();
    assert!(with_a.value > before - 1.0 && with_a.value < newest.value);
}

#[tokio::test]
async fn counters_follow_what_was_asked() {
    let server = run(like_the_capture()).await;
    ask(&server, "tiny", 5).await;
    ask(&server, "tiny", 5).await;
    let page = Page::parse(&get(server.addr(), "/metrics").await.body);
    assert_eq!(page.value("vllm:prefix_cache_queries_total", &[]), 400.0);
    assert_eq!(page.value("vllm:prefix_cache_hits_total", &[]), 192.0, "six full blocks of 32");
    assert_eq!(page.value("vllm:prompt_tokens_total", &[]), 400.0);
    assert_eq!(page.value("vllm:prompt_tokens_by_source_total", &[("source", "local_cache_hit")]), 192.0);
    assert_eq!(page.value("vllm:generation_tokens_total", &[]), 10.0);
    assert_eq!(page.value("vllm:request_success_total", &[("finished_reason", "length")]), 2.0);
    assert_eq!(page.value("vllm:time_to_first_token_seconds_count", &[]), 2.0);
    assert_eq!(page.value("vllm:inter_token_latency_seconds_bucket", &[("le", "+Inf")]), 8.0);
    assert_eq!(page.value("vllm:request_prompt_tokens_sum", &[]), 400.0);
}

/// A page of each engine while one request runs and two wait.
async fn page_under_load(engine_kind: EngineKind, trt_llm_page: TrtLlmPage, path: &str) -> Page {
    let engine = Config { max_num_seqs: 1, num_gpu_blocks: 1000, ..slow().engine };
    let server = run(ServerConfig { engine_kind, trt_llm_page, engine, ..slow() }).await;
    let body = json!({"prompt": vec![7; 4_000], "max_tokens": 3_000, "ignore_eos": true}).to_string();
    let mut clients = Vec::new();
    for waiting in 0..3 {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(post_text("/v1/completions", &body).as_bytes()).await.unwrap();
        clients.push(stream);
        eventually("one more request", || server.load() == (1, waiting)).await;
    }
    Page::parse(&get(server.addr(), path).await.body)
}

#[tokio::test]
async fn vllm_shows_its_load() {
    let page = page_under_load(EngineKind::Vllm, TrtLlmPage::Triton, "/metrics").await;
    assert_eq!(page.value("vllm:num_requests_running", &[]), 1.0);
    assert_eq!(page.value("vllm:num_requests_waiting", &[]), 2.0);
    assert_eq!(page.value("vllm:num_requests_waiting_by_reason", &[("reason", "capacity")]), 2.0);
    let usage = page.value("vllm:kv_cache_usage_perc", &[]);
    assert!((0.1..=0.3).contains(&usage), "128 to 251 of 1000 blocks: {usage}");
}

#[tokio::test]
async fn sglang_shows_its_load_under_its_own_names() {
    let page = page_under_load(EngineKind::Sglang, TrtLlmPage::Triton, "/metrics").await;
    assert_eq!(page.value("sglang:num_running_reqs", &[]), 1.0);
    assert_eq!(page.value("sglang:num_queue_reqs", &[]), 2.0);
    assert!((0.1..=0.3).contains(&page.value("sglang:token_usage", &[("model_name", "tiny")])));
    assert_eq!(page.values_of("sglang:cache_config_info", "page_size"), ["16"]);
    assert_eq!(page.values_of("sglang:cache_config_info", "num_pages"), ["1000"]);
    assert!(page.samples.iter().all(|sample| sample.name.starts_with("sglang:")));
}

#[tokio::test]
async fn triton_shows_its_load_by_the_values_of_labels() {
    let page = page_under_load(EngineKind::TrtLlm, TrtLlmPage::Triton, "/metrics").await;
    let requests = |kind| page.value("nv_trt_llm_request_metrics", &[("request_type", kind)]);
    assert_eq!((requests("scheduled"), requests("waiting"), requests("max")), (1.0, 2.0, 1.0));
    let blocks = |kind| page.value("nv_trt_llm_kv_cache_block_metrics", &[("kv_cache_block_type", kind)]);
    assert_eq!(
        (blocks("tokens_per"), blocks("max"), blocks("used") + blocks("free")),
        (16.0, 1000.0, 1000.0)
    );
    assert_eq!(blocks("fraction"), blocks("used") / 1000.0);
    assert!((0.1..=0.3).contains(&blocks("fraction")));
}

#[tokio::test]
async fn trtllm_serve_shows_its_load_at_its_own_path_too() {
    let page = page_under_load(EngineKind::TrtLlm, TrtLlmPage::TrtllmServe, "/prometheus/metrics").await;
    let value = |name: &str| page.value(name, &[]);
    assert_eq!((value("trtllm_num_requests_running"), value("trtllm_num_requests_waiting")), (1.0, 2.0));
    assert!((0.1..=0.3).contains(&value("trtllm_kv_cache_utilization")));
    assert_eq!(value("trtllm_kv_cache_tokens_per_block"), 16.0);
    assert_eq!(value("trtllm_kv_cache_max_blocks"), 1000.0);
}
