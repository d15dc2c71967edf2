//! A translation that Envoy Gateway asked for, with pools put into it, as Envoy's own definitions read it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, where a panic is a failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_gateway::{
    Backend, ExtensionServer, Known, KnownPool, PickerOwner, RouteName, Serving, Setting, StampedPool,
    Translated, Translation, translate,
};
use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::ext_proc_per_route::Override;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::{ExtProcPerRoute, ExternalProcessor};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::extensions::load_balancing_policies::override_host::v3::OverrideHost;
use envoy_types::pb::envoy::extensions::load_balancing_policies::subset::v3::Subset;
use envoy_types::pb::envoy::extensions::load_balancing_policies::subset::v3::subset::LbSubsetFallbackPolicy;
use envoy_types::pb::envoy::extensions::load_balancing_policies::subset::v3::subset::lb_subset_selector::LbSubsetSelectorFallbackPolicy;
use envoy_types::pb::google::protobuf::Any;
use pool::PoolId;
use prost::Message as _;

const FILTER: &str = "envoy.filters.http.ext_proc/pointsman";

fn capture() -> Translation {
    let bytes = Bytes::from_static(include_bytes!("captures/translation.bin"));
    Translation::read(&bytes).unwrap()
}

fn pool(name: &str, weight: u32) -> Backend {
    Backend { pool: Some(PoolId::new("default", name)), weight }
}

/// What tests/captures/resources.yaml says.
fn known() -> Known {
    let route = |name: &str| RouteName { namespace: "default".into(), name: name.into() };
    let canary = vec![
        vec![pool("qwen-pool", 90), pool("llama-pool", 10)],
        vec![Backend { pool: None, weight: 3 }, pool("llama-pool", 1)],
        vec![pool("nowhere", 1), pool("qwen-pool", 4)],
    ];
    Known {
        routes: [(route("sole"), vec![vec![pool("qwen-pool", 1)]]), (route("canary"), canary)].into(),
        former: [].into(),
        pools: [known_pool("llama-pool", PickerOwner::Pool), known_pool("qwen-pool", PickerOwner::Ours)]
            .into(),
    }
}

fn known_pool(name: &str, picker: PickerOwner) -> (PoolId, KnownPool) {
    let fails_open = name == "qwen-pool";
    let pool = StampedPool {
        namespace: "default".into(),
        name: name.into(),
        fail_open: fails_open,
        h2c: !fails_open,
    };
    (pool.id(), KnownPool { pool, picker, serving: Serving::Yes })
}

fn translated(known: &Known) -> Translated {
    let setting = Setting {
        discovery: ("pointsman-controller.pointsman-system.svc".into(), 5005),
        pickers_change: true,
    };
    translate(&capture(), known, &setting)
}

/// How the filter is for a route or an entry.
fn filter(configs: &std::collections::HashMap<String, Any>) -> String {
    let Some(any) = configs.get(FILTER) else { return "no picker".into() };
    assert!(any.type_url.ends_with("ExtProcPerRoute"));
    let Some(Override::Overrides(it)) = ExtProcPerRoute::decode(&*any.value).unwrap().r#override else {
        panic!()
    };
    let service = format!("{:?}", it.grpc_service.unwrap());
    let cluster = service.split("cluster_name: \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let mode = it.processing_mode.unwrap();
    let open = if it.failure_mode_allow.unwrap().value { "open" } else { "close" };
    format!(
        "asks {cluster}, fails {open}, bodies {:?}/{:?}",
        mode.request_body_mode(),
        mode.response_body_mode()
    )
}

fn route(it: &Route, view: &mut String) {
    let action = match it.action.as_ref() {
        Some(Action::Route(action)) => action,
        other => return writeln!(view, "  {}: {other:?}", it.name).unwrap(),
    };
    let retries =
        action.retry_policy.as_ref().map(|policy| policy.num_retries.as_ref().map_or(1, |it| it.value));
    let timeout = action.timeout.as_ref().map(|timeout| timeout.seconds);
    let replay = it.request_body_buffer_limit.as_ref().map(|limit| limit.value);
    writeln!(view, "  {}: retries {retries:?}, timeout {timeout:?} s, replay {replay:?} bytes", it.name)
        .unwrap();
    match action.cluster_specifier.as_ref().unwrap() {
        ClusterSpecifier::Cluster(cluster) => {
            writeln!(view, "    {cluster}: {}", filter(&it.typed_per_filter_config)).unwrap();
        }
        ClusterSpecifier::WeightedClusters(all) => {
            for entry in &all.clusters {
                let weight = entry.weight.as_ref().unwrap().value;
                writeln!(view, "    {weight} {}: {}", entry.name, filter(&entry.typed_per_filter_config))
                    .unwrap();
            }
        }
        other => panic!("{other:?}"),
    }
}

/// A policy and, in it, the one for what the picker named no endpoint for.
fn balancing(it: &Policy) -> String {
    let config = it.typed_extension_config.as_ref().unwrap();
    let name = config.name.rsplit('.').next().unwrap().to_owned();
    let value = &*config.typed_config.as_ref().unwrap().value;
    let within = |policy: Option<LoadBalancingPolicy>| balancing(&policy.unwrap().policies[0]);
    match &*name {
        "override_host" => {
            let within = within(OverrideHost::decode(value).unwrap().fallback_policy);
            format!("{name}, else {within}")
        }
        "subset" => {
            let it = Subset::decode(value).unwrap();
            assert_eq!(it.fallback_policy(), LbSubsetFallbackPolicy::NoFallback);
            assert!(it.allow_redundant_keys);
            let [selector] = &*it.subset_selectors else { panic!() };
            assert_eq!(selector.fallback_policy(), LbSubsetSelectorFallbackPolicy::AnyEndpoint);
            format!("{name} of {:?}, by {}", selector.keys, within(it.subset_lb_policy))
        }
        _ => name,
    }
}

fn cluster(it: &Cluster, view: &mut String) {
    let text = format!("{it:?}");
    let endpoints = it.eds_cluster_config.as_ref().map_or("", |config| &config.service_name);
    let ours = if text.contains("DeltaGrpc") || text.contains("pointsman/discovery") {
        "ours"
    } else {
        "Envoy Gateway's"
    };
    let policies = it.load_balancing_policy.iter().flat_map(|policy| &policy.policies);
    let policies: Vec<_> = policies.map(balancing).collect();
    let breakers = it.circuit_breakers.iter().flat_map(|it| &it.thresholds);
    let limits = breakers.map(|it| {
        (it.max_connections.as_ref().map(|it| it.value), it.max_requests.as_ref().map(|it| it.value))
    });
    let limits: Vec<_> = limits.collect();
    let options: BTreeMap<_, _> = it.typed_extension_protocol_options.iter().collect();
    let http2 = options.values().any(|any| {
        use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
        format!("{:?}", HttpProtocolOptions::decode(&*any.value).unwrap()).contains("Http2ProtocolOptions(")
    });
    let tls = it.transport_socket.is_some();
    let checks = it.health_checks.len();
    writeln!(
        view,
        "  {}: endpoints {endpoints:?} of {ours}, by {policies:?}, limits {limits:?}, http2 {http2}, tls {tls}, health checks {checks}",
        it.name
    )
    .unwrap();
}

fn listener(it: &Listener, view: &mut String) {
    let chains = it.filter_chains.iter().chain(&it.default_filter_chain);
    for filter in chains.flat_map(|chain| &chain.filters) {
        use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig;
        let Some(TypedConfig(any)) = &filter.config_type else { continue };
        let manager = HttpConnectionManager::decode(&*any.value).unwrap();
        let filters = manager.http_filters.iter().map(|filter| {
            if filter.name == FILTER {
                let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { panic!() };
                let processor = ExternalProcessor::decode(&*any.value).unwrap();
                assert_eq!(processor.max_message_timeout.unwrap().seconds, 3600);
                assert!(filter.disabled);
            }
            filter.name.as_str()
        });
        writeln!(view, "  {}: {:?}", it.name, filters.collect::<Vec<_>>()).unwrap();
    }
}

/// A translation in words.
fn view(it: &Translation) -> String {
    let mut view = String::new();
    view.push_str("routes\n");
    for bytes in &it.routes {
        let configuration = RouteConfiguration::decode(&**bytes).unwrap();
        let routes = configuration.virtual_hosts.iter().flat_map(|host| &host.routes);
        routes.for_each(|it| route(it, &mut view));
    }
    view.push_str("clusters\n");
    it.clusters.iter().for_each(|bytes| cluster(&Cluster::decode(&**bytes).unwrap(), &mut view));
    view.push_str("listeners\n");
    it.listeners.iter().for_each(|bytes| listener(&Listener::decode(&**bytes).unwrap(), &mut view));
    view
}

#[test]
fn pools_are_put_into_what_envoy_gateway_made() {
    let made = translated(&known());
    assert_eq!((made.faults, made.behind), (vec![], [].into()));
    insta::assert_snapshot!("translated", view(&made.translation));
}

#[test]
fn what_envoy_gateway_made() {
    insta::assert_snapshot!("asked", view(&capture()));
}

#[test]
fn what_names_no_pool_passes_byte_for_byte() {
    let (asked, made) = (capture(), translated(&known()).translation);
    let named = |bytes: &Bytes| RouteConfiguration::decode(&**bytes).unwrap().name;
    let other = asked.routes.iter().zip(&made.routes).filter(|(asked, _)| named(asked) == "default/gw/other");
    assert_eq!(other.map(|(asked, made)| assert_eq!(asked, made)).count(), 1);
    let plain = |clusters: &[Bytes]| {
        let plain =
            clusters.iter().filter(|bytes| Cluster::decode(&***bytes).unwrap().name.contains("/plain/"));
        plain.cloned().collect::<Vec<_>>()
    };
    assert_eq!(plain(&asked.clusters), plain(&made.clusters));
    assert_eq!(plain(&asked.clusters).len(), 1);
    // Of a configuration with pools the other routes too.
    let routes = |it: &Translation| {
        let all =
            it.routes.iter().flat_map(|bytes| RouteConfiguration::decode(&**bytes).unwrap().virtual_hosts);
        let routes = all.flat_map(|host| host.routes).filter(|route| route.name.contains("/plain/"));
        routes.collect::<Vec<_>>()
    };
    assert_eq!(routes(&asked), routes(&made));
}

#[test]
fn nothing_of_a_stamp_is_left() {
    for bytes in translated(&known()).translation.routes {
        assert!(!bytes.windows(13).any(|window| window == b"pointsman.dev"));
    }
}

#[test]
fn the_same_is_made_of_the_same() {
    assert_eq!(translated(&known()), translated(&known()));
}

#[test]
fn a_pool_with_a_picker_of_ours_fails_closed_at_its_cluster() {
    let view = view(&translated(&Known { pools: BTreeMap::new(), ..known() }).translation);
    let entry = "10 httproute/default/canary/rule/0/pool/default/llama-pool: asks pointsman/picker/default/llama-pool";
    assert!(view.contains(&format!("{entry}, fails open, bodies BufferedPartial/None")), "{view}");
    let closed = r#"override_host, else subset of [\"x-gateway-destination-endpoint\"], by least_request"#;
    let of_pool = |pool: &str| {
        let endpoints = format!("endpoints \"pointsman/pool/default/{pool}\"");
        let lines: Vec<_> = view.lines().filter(|line| line.contains(&endpoints)).collect();
        (lines.len(), lines.iter().filter(|line| line.contains(closed)).count())
    };
    assert_eq!((of_pool("llama-pool"), of_pool("qwen-pool")), ((2, 2), (3, 0)), "{view}");
}

#[test]
fn a_route_that_is_not_known_yet_is_told_and_its_pools_share_evenly() {
    let mut known = known();
    known.routes.retain(|name, _| name.name == "sole");
    let made = translated(&known);
    assert_eq!(made.behind.iter().map(ToString::to_string).collect::<Vec<_>>(), ["default/canary"]);
    let view = view(&made.translation);
    assert!(
        view.contains("1 httproute/default/canary/rule/0/pool/default/qwen-pool: asks pointsman/picker/default/qwen-pool"),
        "{view}"
    );
    assert!(
        view.contains(
            "1 httproute/default/canary/rule/0/pool/default/llama-pool: asks pointsman/own-picker/default/llama-pool"
        ),
        "{view}"
    );
}

#[test]
fn envoys_know_where_to_ask_for_endpoints_before_there_is_a_pool() {
    let setting = Setting { discovery: ("c".into(), 1), pickers_change: true };
    let made = translate(&Translation::default(), &Known::default(), &setting).translation;
    let names: Vec<_> = made.clusters.iter().map(|it| Cluster::decode(&**it).unwrap().name).collect();
    assert_eq!(names, ["pointsman/discovery"]);
    assert_eq!(Translation { clusters: vec![], ..made }, Translation::default());
}

/// Envoy Gateway may hear later than we do that an HTTPRoute is gone.
#[test]
fn a_route_that_is_gone_is_translated_as_it_was() {
    let mut gone = known();
    gone.former = std::mem::take(&mut gone.routes);
    let made = translated(&gone);
    assert_eq!((&made.behind, made.ahead), (&[].into(), true));
    assert_eq!(made.translation, translated(&known()).translation);
    assert!(!translated(&known()).ahead);
}

/// Envoy Gateway has seen that a Service's weight is 0 now, so that nothing is behind its share any more, before we have.
#[tokio::test(start_paused = true)]
async fn a_service_that_leaves_a_rule_with_pools_is_waited_for() {
    let setting = Setting { discovery: ("c".into(), 1), pickers_change: true };
    let mut left = known();
    let canary = RouteName { namespace: "default".into(), name: "canary".into() };
    left.routes.get_mut(&canary).unwrap()[1][0].weight = 0;
    let expected = translate(&capture(), &left, &setting);
    assert!(!expected.shared && translate(&capture(), &known(), &setting).shared);
    let (tell, told) = tokio::sync::watch::channel(Arc::new(known()));
    let (_tell_endpoints, endpoints) = tokio::sync::watch::channel(Arc::default());
    let server = ExtensionServer::new(setting, told, endpoints);
    let request = Bytes::from_static(include_bytes!("captures/translation.bin"));
    // Of the paused clock: news that comes just before the translation would go without it.
    let later = async {
        tokio::time::sleep(Duration::from_millis(90)).await;
        tell.send_replace(Arc::new(left));
    };
    let (answer, ()) = tokio::join!(server.answer("PostTranslateModify", &request), later);
    assert_eq!(answer.unwrap().unwrap(), expected.translation.write());
}

/// Requests that come when its weight rises find a cluster that Envoy has filled; those that are on their way when it falls, too.
#[test]
fn a_pool_whose_weight_is_0_has_its_cluster_and_no_requests() {
    let mut idle = known();
    let mut name = |route: &str, of: Vec<Backend>| {
        idle.routes.insert(RouteName { namespace: "default".into(), name: route.into() }, vec![of]);
    };
    // Beside a pool, and beside a Service alone.
    name("sole", vec![pool("qwen-pool", 1), pool("llama-pool", 0), pool("nowhere", 0)]);
    name("plain", vec![Backend { pool: None, weight: 1 }, pool("qwen-pool", 0)]);
    let (before, made) = (translated(&known()).translation, translated(&idle));
    assert_eq!((made.faults, made.behind), (vec![], [].into()));
    assert_eq!(made.translation.routes, before.routes);
    let named = |it: &Translation, wanted: &str| {
        let all = it.clusters.iter().map(|bytes| Cluster::decode(&**bytes).unwrap());
        all.into_iter().find(|cluster| cluster.name == wanted)
    };
    let comes = "httproute/default/plain/rule/0/pool/default/qwen-pool";
    let new = ["httproute/default/sole/rule/0/pool/default/llama-pool", comes];
    for name in new {
        assert!(named(&before, name).is_none() && named(&made.translation, name).is_some(), "{name}");
    }
    assert_eq!(made.translation.clusters.len(), before.clusters.len() + new.len());
    // It is what it will be when its weight has risen.
    let mut with_weight =
        named(&made.translation, "httproute/default/sole/rule/0/pool/default/qwen-pool").unwrap();
    with_weight.name = comes.into();
    let idle = named(&made.translation, comes).unwrap();
    with_weight.metadata.clone_from(&idle.metadata);
    assert_eq!(idle, with_weight);
    // A listener that leads to no other pool asks no picker, and is ready to.
    let mut view = String::new();
    made.translation.listeners.iter().for_each(|it| listener(&Listener::decode(&**it).unwrap(), &mut view));
    assert!(view.contains(&format!("default/gw/other: [\"{FILTER}\"")), "{view}");
}

/// Envoy Gateway has seen its weight fall to 0 before we have.
#[test]
fn a_pool_that_envoy_gateway_passes_over_keeps_its_cluster() {
    let mut ahead = known();
    let sole = RouteName { namespace: "default".into(), name: "sole".into() };
    ahead.routes.insert(sole, vec![vec![pool("qwen-pool", 1), pool("llama-pool", 1)]]);
    let made = translated(&ahead).translation;
    assert_eq!(made.routes, translated(&known()).translation.routes);
    let name = "httproute/default/sole/rule/0/pool/default/llama-pool";
    assert!(made.clusters.iter().any(|bytes| Cluster::decode(&**bytes).unwrap().name == name));
}

/// Envoy may hear of the route later than of its clusters.
#[test]
fn a_pool_that_left_its_rule_keeps_its_cluster_for_a_while() {
    let mut left = known();
    let sole = RouteName { namespace: "default".into(), name: "sole".into() };
    left.former.insert(sole, vec![vec![pool("qwen-pool", 1), pool("llama-pool", 1)]]);
    let made = translated(&left);
    assert!(!made.ahead);
    assert_eq!(made.translation.routes, translated(&known()).translation.routes);
    let name = "httproute/default/sole/rule/0/pool/default/llama-pool";
    let is = |bytes: &Bytes| Cluster::decode(&**bytes).unwrap().name == name;
    assert_eq!(made.translation.clusters.iter().filter(|bytes| is(bytes)).count(), 1);
}

/// A change of pickers is then one of routes alone: what they ask is there and warm.
#[test]
fn both_pickers_of_a_pool_have_their_clusters_where_it_may_change() {
    let names = |pickers_change| {
        let setting = Setting { discovery: ("c".into(), 1), pickers_change };
        let made = translate(&capture(), &known(), &setting).translation.clusters;
        let names = made.iter().map(|it| Cluster::decode(&**it).unwrap().name);
        names.filter(|name| name.contains("picker/default")).collect::<BTreeSet<_>>()
    };
    let own = "pointsman/own-picker/default/llama-pool";
    let ours = "pointsman/picker/default/qwen-pool";
    let others = ["pointsman/picker/default/llama-pool", "pointsman/own-picker/default/qwen-pool"];
    assert_eq!(names(false), BTreeSet::from([own, ours].map(str::to_owned)));
    assert_eq!(names(true), BTreeSet::from([own, ours, others[0], others[1]].map(str::to_owned)));
}

/// Requests that came before Envoy heard of the weights still go there.
#[test]
fn a_service_whose_weight_is_0_keeps_its_cluster() {
    let cluster = "httproute/default/sole/rule/0";
    let has = |known: &Known| {
        let clusters = translated(known).translation.clusters;
        clusters.iter().any(|bytes| Cluster::decode(&**bytes).unwrap().name == cluster)
    };
    assert!(!has(&known()), "nobody asks for it");
    let mut idle = known();
    let sole = RouteName { namespace: "default".into(), name: "sole".into() };
    let backends = vec![pool("qwen-pool", 1), Backend { pool: None, weight: 0 }];
    idle.routes.insert(sole, vec![backends]);
    assert!(has(&idle));
    assert_eq!(translated(&idle).translation.routes, translated(&known()).translation.routes);
}

/// Nobody asked here whether the rule may use it.
#[test]
fn a_pool_of_another_namespace_whose_weight_is_0_waits_for_its_weight() {
    let mut idle = known();
    let (_, mut other) = known_pool("qwen-pool", PickerOwner::Ours);
    other.pool.namespace = "other".into();
    let backend = Backend { pool: Some(other.pool.id()), weight: 0 };
    idle.pools.insert(other.pool.id(), other);
    idle.routes.values_mut().flatten().for_each(|backends| backends.push(backend.clone()));
    assert_eq!(translated(&idle), translated(&known()));
}

/// The Service's TLS would not be the pool's.
#[test]
fn a_pool_whose_weight_is_0_beside_a_service_with_tls_waits_for_its_weight() {
    let mut asked = capture();
    for bytes in &mut asked.clusters {
        let mut it = Cluster::decode(&**bytes).unwrap();
        it.transport_socket = Some(Default::default());
        *bytes = it.encode_to_vec().into();
    }
    let mut idle = known();
    let plain = RouteName { namespace: "default".into(), name: "plain".into() };
    idle.routes.insert(plain, vec![vec![Backend { pool: None, weight: 1 }, pool("qwen-pool", 0)]]);
    let setting = Setting { discovery: ("c".into(), 1), pickers_change: true };
    let made = translate(&asked, &idle, &setting);
    assert_eq!(made.faults, vec![]);
    assert_eq!(made.translation.clusters, translate(&asked, &known(), &setting).translation.clusters);
}

#[test]
fn what_cannot_be_read_loses_itself_alone() {
    let mut asked = capture();
    asked.clusters.push(Bytes::from_static(b"\xff\xff"));
    asked.listeners.push(Bytes::from_static(b"\xff\xff"));
    asked.routes.push(Bytes::from_static(b"\xff\xff"));
    let setting = Setting { discovery: ("c".into(), 1), pickers_change: true };
    let made = translate(&asked, &known(), &setting);
    assert_eq!(made.faults.len(), 2);
    let sound = translate(&capture(), &known(), &setting).translation;
    let of =
        |all: &[Bytes]| all.iter().filter(|bytes| ***bytes != b"\xff\xff"[..]).cloned().collect::<Vec<_>>();
    assert_eq!(of(&made.translation.routes), sound.routes);
    assert_eq!(of(&made.translation.listeners), sound.listeners);
    assert_eq!(of(&made.translation.clusters), sound.clusters);
}
