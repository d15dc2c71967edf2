//! Which endpoints the slices give a pool.

use pool::{InferencePool, Manifest, parse};

const POOL: &str = "apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: p, namespace: ns}
spec:
  selector: {matchLabels: {app: a, tier: b}}
  targetPorts: PORTS
";

/// `name=host:port` of each endpoint of a pool with these target ports.
fn endpoints(ports: &str, slices: &[&str]) -> Vec<String> {
    let text = [&[POOL.replace("PORTS", ports).as_str()], slices].concat().join("---\n");
    let Manifest { pools, slices, faults, .. } = parse("f", &text).expect("YAML");
    assert_eq!(faults, []);
    let pool: &InferencePool = &pools[0];
    pool.endpoints(&slices).iter().map(|spec| format!("{}={}:{}", spec.name, spec.host, spec.port)).collect()
}

fn slice(namespace: &str, labels: &str, rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{:x}, namespace: {namespace}, labels: {{{labels}}}}}\naddressType: IPv4\n{rest}\n",
        rest.len()
    )
}

fn ours(rest: &str) -> String {
    slice("ns", "app: a, tier: b, more: c", rest)
}

#[test]
fn a_slice_belongs_to_the_pools_of_its_namespace_whose_selector_it_matches() {
    let one = "endpoints: [{addresses: [10.0.0.1]}]";
    let port = "[{number: 8000}]";
    assert_eq!(endpoints(port, &[&ours(one)]), ["10.0.0.1=10.0.0.1:8000"]);
    assert_eq!(endpoints(port, &[&slice("other", "app: a, tier: b", one)]), [""; 0]);
    assert_eq!(endpoints(port, &[&slice("ns", "app: a", one)]), [""; 0]);
    assert_eq!(endpoints(port, &[&slice("ns", "app: a, tier: c", one)]), [""; 0]);
}

#[test]
fn the_slices_ports_come_before_the_pools() {
    let one = "endpoints: [{addresses: [10.0.0.1], targetRef: {name: pod}}]";
    let two = "[{number: 8000}, {number: 8001}]";
    assert_eq!(endpoints(two, &[&ours(one)]), ["pod-rank-0=10.0.0.1:8000", "pod-rank-1=10.0.0.1:8001"]);
    let named = ours(&format!("ports: [{{name: http, port: 9000}}]\n{one}"));
    assert_eq!(endpoints(two, &[&named]), ["pod=10.0.0.1:9000"]);
    let none = ours(&format!("ports: [{{name: http}}]\n{one}"));
    assert_eq!(endpoints("[{number: 8000}]", &[&none]), ["pod=10.0.0.1:8000"]);
}

#[test]
fn a_port_whose_protocol_is_https_is_spoken_to_over_tls() {
    let text = ours(
        "ports: [{port: 80, appProtocol: http}, {port: 443, appProtocol: https}, {port: 90}]\n\
         endpoints: [{addresses: [10.0.0.1]}]",
    );
    let all = [POOL.replace("PORTS", "[{number: 1}]"), text].join("---\n");
    let Manifest { pools, slices, .. } = parse("f", &all).expect("YAML");
    let tls: Vec<_> = pools[0].endpoints(&slices).iter().map(|spec| (spec.port, spec.tls)).collect();
    assert_eq!(tls, [(80, false), (443, true), (90, false)]);
}

#[test]
fn what_is_not_ready_or_is_on_its_way_out_is_no_endpoint() {
    let text = ours(
        "endpoints:
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.2], conditions: {}}
- {addresses: [10.0.0.3], conditions: {ready: true}}
- {addresses: [10.0.0.4], conditions: {ready: false}}
- {addresses: [10.0.0.5], conditions: {ready: true, terminating: true}}
- {addresses: [10.0.0.6], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.7], conditions: {ready: true, serving: false}}",
    );
    let hosts: Vec<String> = ["1", "2", "3", "7"].map(|n| format!("10.0.0.{n}=10.0.0.{n}:80")).into();
    assert_eq!(endpoints("[{number: 80}]", &[&text]), hosts);
}

#[test]
fn only_the_first_address_of_an_endpoint_counts() {
    let text = ours("endpoints: [{addresses: [10.0.0.1, 10.0.0.2]}]");
    assert_eq!(endpoints("[{number: 80}]", &[&text]), ["10.0.0.1=10.0.0.1:80"]);
}

#[test]
fn one_address_and_port_is_one_endpoint_and_so_is_one_pod_and_port() {
    let four = ours(
        "endpoints: [{addresses: [10.0.0.1], targetRef: {name: a}}, {addresses: [10.0.0.1], targetRef: {name: b}}]",
    );
    let six = ours("endpoints: [{addresses: ['fd00::1'], targetRef: {name: a}}, {addresses: ['fd00::2'], targetRef: {name: c}}]")
        .replace("IPv4", "IPv6");
    assert_eq!(endpoints("[{number: 80}]", &[&four, &six]), ["a=10.0.0.1:80", "c=fd00::2:80"]);
}

#[test]
fn names_are_unique_when_a_pods_ports_are_spread_over_slices() {
    let one = ours("ports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1], targetRef: {name: a}}]");
    let two = ours("ports: [{port: 8080}]\nendpoints: [{addresses: [10.0.0.1], targetRef: {name: a}}]");
    assert_eq!(endpoints("[{number: 1}]", &[&one, &two]), ["a=10.0.0.1:80", "a-8080=10.0.0.1:8080"]);
}

#[test]
fn names_and_addresses_of_dns_are_taken_as_they_are() {
    let text = ours("endpoints: [{addresses: [gpu-1.example.com]}]").replace("IPv4", "FQDN");
    assert_eq!(endpoints("[{number: 80}]", &[&text]), ["gpu-1.example.com=gpu-1.example.com:80"]);
}
