//! Whatever an overlay says: what of a picker is not open to it stays as the default has it.
//!
//! Overlays are drawn from all fields that Kubernetes knows, directives among them. What is open is written down here once more,
//! from the contract.

use operator::overlay::Overlay;
use operator::render::{CONTAINER, Options, PickerObjects, render};
use pool::{PoolId, PoolVersion};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

const SCHEMA: &str = include_str!("../src/overlay/schema.json");
const PARTS: [(&str, &str); 3] = [
    ("deployment", "apps.v1.Deployment"),
    ("service", "core.v1.Service"),
    ("podDisruptionBudget", "policy.v1.PodDisruptionBudget"),
];

/// Paths below which everything is open; the picker's container is `[picker]`, any other item `[]`.
const OPEN: [&str; 26] = [
    "Deployment.spec.replicas",
    "Deployment.spec.strategy",
    "Deployment.spec.template.metadata.labels.*",
    "Deployment.spec.template.metadata.annotations.*",
    "Deployment.spec.template.spec.affinity",
    "Deployment.spec.template.spec.nodeSelector",
    "Deployment.spec.template.spec.terminationGracePeriodSeconds",
    "Deployment.spec.template.spec.tolerations",
    "Deployment.spec.template.spec.topologySpreadConstraints",
    "Deployment.spec.template.spec.volumes[].name",
    "Deployment.spec.template.spec.volumes[].emptyDir",
    "Deployment.spec.template.spec.volumes[].downwardAPI",
    "Deployment.spec.template.spec.containers[picker].env[].name",
    "Deployment.spec.template.spec.containers[picker].env[].value",
    "Deployment.spec.template.spec.containers[picker].env[].valueFrom.fieldRef",
    "Deployment.spec.template.spec.containers[picker].env[].valueFrom.resourceFieldRef",
    "Deployment.spec.template.spec.containers[picker].resources",
    "Deployment.spec.template.spec.containers[picker].volumeMounts",
    "Deployment.spec.template.spec.containers[picker].ports[new]",
    "Service.metadata.annotations.*",
    "Service.spec.internalTrafficPolicy",
    "Service.spec.trafficDistribution",
    "Service.spec.sessionAffinity",
    "Service.spec.sessionAffinityConfig",
    "PodDisruptionBudget.spec.minAvailable",
    "PodDisruptionBudget.spec.maxUnavailable",
];
const PROBES: [&str; 3] = ["startupProbe", "livenessProbe", "readinessProbe"];
const TIMINGS: [&str; 6] = [
    "failureThreshold",
    "initialDelaySeconds",
    "periodSeconds",
    "successThreshold",
    "terminationGracePeriodSeconds",
    "timeoutSeconds",
];

fn default() -> PickerObjects {
    let options = Options {
        gateway_namespace: "envoy-gateway-system".into(),
        epp_image: "pointsman:1".into(),
        conformance: false,
    };
    render(&PoolId::new("default", "qwen-pool"), PoolVersion::V1, &options)
}

/// Draws numbers out of a list, then zeros: a case is that list, so that it shrinks.
struct Draws<'a>(std::slice::Iter<'a, u8>);

impl Draws<'_> {
    fn next(&mut self, below: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % below.max(1)
    }

    fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.next(of.len())]
    }
}

/// A value of that form: mostly one that Kubernetes would take.
fn value(schema: &Value, form: &Value, draws: &mut Draws<'_>, depth: usize) -> Value {
    match form {
        Value::String(form) => scalar(form, draws),
        Value::Object(form) => match form.iter().next() {
            Some((kind, of)) if kind == "object" => {
                object(schema, of.as_str().unwrap_or_default(), draws, depth)
            }
            Some((kind, of)) if kind == "list" => {
                let items = (0..draws.next(2) + 1).map(|_| value(schema, of, draws, depth + 1));
                items.collect()
            }
            Some((_, of)) => {
                let keys = ["team", "app", "inference-pool", "istio.io/rev", "example.com/owner", "cpu"];
                json!({ *draws.pick(&keys): value(schema, of, draws, depth + 1) })
            }
            None => Value::Null,
        },
        _ => Value::Null,
    }
}

fn scalar(form: &str, draws: &mut Draws<'_>) -> Value {
    let texts = [
        CONTAINER,
        "x",
        "1",
        "http-metrics",
        "/data",
        "/var/run/x",
        "default",
        "RollingUpdate",
        "Local",
        "ClientIP",
        "PATH_A",
        "LD_PRELOAD",
        "metadata.name",
        "",
    ];
    let numbers = [json!(0), json!(1), json!(3), json!(9002), json!(9100), json!(-1)];
    match form {
        "integer" => draws.pick(&numbers).clone(),
        "boolean" => (draws.next(2) == 0).into(),
        "quantity" => json!(*draws.pick(&["1", "500m", "2Gi"])),
        "intOrString" => draws.pick(&[json!(1), json!("25%")]).clone(),
        _ => json!(*draws.pick(&texts)),
    }
}

/// One to three of the object's fields, sometimes a directive or `null` beside or in place of them.
fn object(schema: &Value, name: &str, draws: &mut Draws<'_>, depth: usize) -> Value {
    let Some(fields) = schema[name].as_object() else { return json!({}) };
    let names: Vec<&String> = fields.keys().collect();
    let mut made = Map::new();
    // What leads on to what is open is drawn more often.
    let ways = [
        "spec",
        "template",
        "metadata",
        "containers",
        "labels",
        "annotations",
        "env",
        "resources",
        "volumes",
        "ports",
        "affinity",
        "readinessProbe",
        "strategy",
    ];
    for _ in 0..=draws.next(2) {
        let on_the_way: Vec<_> = names.iter().filter(|name| ways.contains(&name.as_str())).collect();
        let field = if draws.next(4) > 0 && !on_the_way.is_empty() {
            (**draws.pick(&on_the_way)).clone()
        } else {
            (*draws.pick(&names)).clone()
        };
        let one = if depth > 12 || draws.next(24) == 1 {
            Value::Null
        } else {
            value(schema, &fields[&field]["form"], draws, depth + 1)
        };
        made.insert(field, one);
    }
    if fields.contains_key("name") && draws.next(3) > 0 {
        made.insert("name".into(), draws.pick(&[CONTAINER, "x", "grpc-ext-proc"]).to_string().into());
    }
    match draws.next(20) {
        1 => drop(made.insert("$patch".into(), (*draws.pick(&["replace", "delete", "merge"])).into())),
        2 => drop(made.insert("$retainKeys".into(), json!([draws.pick(&names)]))),
        3 => {
            let directive = format!("$setElementOrder/{}", draws.pick(&names));
            made.insert(directive, json!([{ "name": "x" }]));
        }
        4 => {
            let directive = format!("$deleteFromPrimitiveList/{}", draws.pick(&names));
            made.insert(directive, json!(["ALL"]));
        }
        _ => {}
    }
    Value::Object(made)
}

/// Every leaf of the object by its path.
fn leaves(path: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                leaves(&format!("{path}.{name}"), value, into);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let name = item["name"].as_str();
                let place = match (path.ends_with(".containers"), path.ends_with(".ports"), name) {
                    (true, _, Some(CONTAINER)) => "picker",
                    (_, true, _) if [9002, 9003, 9090].iter().any(|own| item["containerPort"] == *own) => {
                        "own"
                    }
                    (_, true, _) => "new",
                    (true, _, _) => "stranger",
                    _ => "",
                };
                leaves(&format!("{path}[{place}]"), item, into);
            }
        }
        value => into.push((path.to_owned(), value.clone())),
    }
}

fn is_open(path: &str, was_there: bool) -> bool {
    let probes = PROBES.iter().flat_map(|probe| {
        TIMINGS.map(|timing| format!("Deployment.spec.template.spec.containers[picker].{probe}.{timing}"))
    });
    let is_below = |open: &str| match open.strip_suffix('*') {
        // A name of the writer's: not one that the default has.
        Some(names) => path.starts_with(names) && !was_there,
        None => path.strip_prefix(open).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])),
    };
    OPEN.iter().copied().any(is_below) || probes.into_iter().any(|probe| probe == path)
}

/// What differs and is not open.
fn trespasses(default: &PickerObjects, reshaped: &PickerObjects) -> Vec<String> {
    let all = |objects: &PickerObjects| {
        let mut all = Vec::new();
        for object in objects.in_order() {
            leaves(object["kind"].as_str().unwrap_or_default(), object, &mut all);
        }
        all
    };
    let (before, after) = (all(default), all(reshaped));
    let changed = before
        .iter()
        .filter(|leaf| !after.contains(leaf))
        .chain(after.iter().filter(|leaf| !before.contains(leaf)));
    let closed = changed.filter(|(path, _)| !is_open(path, before.iter().any(|(there, _)| there == path)));
    closed.map(|(path, value)| format!("{path}: {value}")).collect()
}

fn overlay(key: &str, document: &Value) -> pool::Overlay {
    let data = json!({ key: document.to_string() });
    let config_map =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "o" }, "data": data });
    let mut manifest = pool::parse("overlay", &config_map.to_string()).expect("JSON is YAML");
    manifest.overlays.pop().expect("a ConfigMap with that key is an overlay")
}

/// The default with the overlay over it; none where it is refused.
fn reshaped(key: &str, document: &Value) -> Option<PickerObjects> {
    Overlay::read(&overlay(key, document), &[]).and_then(|overlay| overlay.apply(&default())).ok()
}

fn drawn(draws: &[u8]) -> (&'static str, Value) {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let mut draws = Draws(draws.iter());
    let (key, kind) = PARTS[[0, 0, 0, 1, 2][draws.next(5)]];
    (key, object(&schema, kind, &mut draws, 0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_is_closed_stays_as_the_default_has_it(draws in prop::collection::vec(any::<u8>(), 4..160)) {
        let (key, document) = drawn(&draws);
        if let Some(reshaped) = reshaped(key, &document) {
            let trespasses = trespasses(&default(), &reshaped);
            prop_assert!(trespasses.is_empty(), "{document} changes {trespasses:?}");
        }
    }
}

#[test]
fn enough_of_what_is_drawn_is_taken_and_changes_something() {
    let (mut taken, mut changes) = (0, 0);
    let mut runner = TestRunner::deterministic();
    for _ in 0..3000 {
        let draws =
            prop::collection::vec(any::<u8>(), 4..160).new_tree(&mut runner).expect("a list").current();
        let (key, document) = drawn(&draws);
        if let Some(reshaped) = reshaped(key, &document) {
            taken += 1;
            changes += u32::from(reshaped != default());
        }
    }
    assert!(taken > 100 && changes > 50, "{taken} taken, {changes} of them change something");
}

#[test]
fn the_judge_sees_what_is_not_open() {
    for (path, value) in [
        ("/spec/template/spec/hostNetwork", json!(true)),
        ("/spec/template/spec/containers/0/image", json!("x")),
        ("/spec/template/metadata/labels/inference-pool", json!("other")),
        ("/spec/template/spec/containers/0/ports/0/containerPort", json!(1)),
        ("/metadata/name", json!("x")),
    ] {
        let mut other = default();
        let (parent, field) = path.rsplit_once('/').expect("a path");
        other.deployment.pointer_mut(parent).expect("it is there")[field] = value;
        assert!(!trespasses(&default(), &other).is_empty(), "{path}");
    }
}
