//! Documents of every kind: what is read, what is left out, what is told.

use pool::{
    AddressType, AppProtocol, Criticality, FaultKind, InferencePool, Manifest, ModelTarget, PickerRef,
    PoolId, PoolVersion, parse,
};

fn read(text: &str) -> Manifest {
    parse("f.yaml", text).expect("YAML")
}

fn faults(text: &str) -> Vec<String> {
    read(text).faults.iter().map(ToString::to_string).collect()
}

/// A v1 pool with this spec, indented by two.
fn pool_v1(spec: &str) -> String {
    format!(
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: p}}\nspec:\n{spec}\n"
    )
}

fn sound(text: &str) -> InferencePool {
    let manifest = read(text);
    assert_eq!(manifest.faults, []);
    manifest.pools.into_iter().next().expect("a pool")
}

#[test]
fn a_v1_pool_is_read_whole() {
    let pool = sound(
        "# a comment
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: qwen-pool
  namespace: serving
  labels: {whatever: true}
  annotations:
    inference.networking.x-k8s.io/queueing: enabled
spec:
  selector:
    matchLabels: {app: qwen, example.com/tier: \"\"}
  targetPorts: [{number: 8000}, {number: 8001}]
  appProtocol: kubernetes.io/h2c
  endpointPickerRef:
    name: epp
    port: {number: 9002}
    failureMode: FailOpen
status: {anything: goes}
",
    );
    assert_eq!(pool.id.to_string(), "serving/qwen-pool");
    assert_eq!((pool.version, pool.position.to_string().as_str()), (PoolVersion::V1, "f.yaml:2:1"));
    let selector: Vec<(&str, &str)> =
        pool.selector.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(selector, [("app", "qwen"), ("example.com/tier", "")]);
    assert_eq!(pool.target_ports, [8000, 8001]);
    assert_eq!(pool.app_protocol, AppProtocol::H2c);
    let (group, kind, name) = (String::new(), "Service".to_owned(), "epp".to_owned());
    assert_eq!(pool.picker, Some(PickerRef { group, kind, name, port: Some(9002), fail_open: true }));
    let queueing = pool.annotations.get("inference.networking.x-k8s.io/queueing").expect("the annotation");
    assert_eq!(queueing.key_position.to_string(), "f.yaml:9:5");
    assert_eq!(queueing.value_position.to_string(), "f.yaml:9:45");
}

#[test]
fn a_v1alpha2_pool_is_read_whole() {
    let pool = sound(
        "apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: qwen-pool}
spec:
  targetPortNumber: 8000
  selector: {app: qwen}
  extensionRef: {name: epp}
",
    );
    assert_eq!((pool.id, pool.version), (PoolId::new("default", "qwen-pool"), PoolVersion::V1Alpha2));
    assert_eq!((pool.target_ports, pool.app_protocol), (vec![8000], AppProtocol::Http));
    let picker = pool.picker.expect("a picker");
    assert_eq!((picker.port, picker.fail_open), (Some(9002), false));
}

#[test]
fn json_is_read_as_yaml_is() {
    let pool = sound(
        "{\n\t\"apiVersion\": \"inference.networking.k8s.io/v1\",\n\t\"kind\": \"InferencePool\",\n\t\"metadata\": {\"name\": \"p\", \"annotations\": {\n\t\t\"inference.networking.x-k8s.io/queueing\": \"enabled\"\n\t}},\n\t\"spec\": {\"selector\": {\"matchLabels\": {\"app\": \"a\"}}, \"targetPorts\": [{\"number\": 8000}]}\n}\n",
    );
    let (_, queueing) = pool.annotations.iter().next().expect("the annotation");
    assert_eq!(
        (queueing.key_position.to_string(), queueing.value_position.to_string()),
        ("f.yaml:5:3".into(), "f.yaml:5:45".into())
    );
}

#[test]
fn each_limit_of_a_pool_holds() {
    let labels = |count: usize| (0..count).map(|n| format!("l{n}: v")).collect::<Vec<_>>().join(", ");
    let ports = |count: usize| (1..=count).map(|n| format!("{{number: {n}}}")).collect::<Vec<_>>().join(", ");
    let spec = |labels: &str, ports: &str| {
        pool_v1(&format!("  selector: {{matchLabels: {{{labels}}}}}\n  targetPorts: [{ports}]"))
    };
    assert_eq!(sound(&spec(&labels(64), &ports(8))).selector.len(), 64);
    for (text, says) in [
        (
            spec(&labels(65), &ports(1)),
            "f.yaml:5:27: spec.selector.matchLabels: found 65 labels; expected 1 to 64; using nothing: InferencePool default/p is left out",
        ),
        (spec("", &ports(1)), "found 0 labels"),
        (spec(&labels(1), ""), "spec.targetPorts: found 0 ports; expected 1 to 8"),
        (spec(&labels(1), &ports(9)), "spec.targetPorts: found 9 ports"),
        (
            spec(&labels(1), "{number: 1}, {number: 2}, {number: 1}"),
            "f.yaml:6:52: spec.targetPorts[2].number: the port 1 is given twice",
        ),
        (
            spec(&labels(1), "{number: 0}"),
            "spec.targetPorts[0].number: found the number \"0\"; expected a whole number from 1 to 65535",
        ),
        (spec(&labels(1), "{number: 65536}"), "spec.targetPorts[0].number"),
        (spec(&labels(1), "{number: '80'}"), "found \"80\"; expected a whole number"),
        (spec(&labels(1), "{number: 80.5}"), "found the number \"80.5\""),
        (spec(&labels(1), "{}"), "spec.targetPorts[0].number: it is missing"),
        (spec(&labels(1), "80"), "spec.targetPorts[0]: found the number \"80\"; expected a mapping"),
        (
            spec("app: 1", &ports(1)),
            "spec.selector.matchLabels.app: found the number \"1\"; expected a string: quote it",
        ),
        (spec("app: on", &ports(1)), "found \"on\" (no string to YAML 1.1); expected a string: quote it"),
        (spec("app: -a", &ports(1)), "expected a label's value"),
        (spec("'a b': c", &ports(1)), "spec.selector.matchLabels.a b: it cannot be a label's key"),
        (pool_v1("  targetPorts: [{number: 1}]"), "spec.selector: it is missing"),
        (pool_v1("  selector: {matchLabels: {a: b}}"), "spec.targetPorts: found 0 ports"),
        (
            pool_v1("  selector: {matchLabels: [a]}\n  targetPorts: [{number: 1}]"),
            "spec.selector.matchLabels: found a list; expected a mapping",
        ),
        (
            pool_v1("  selector: {matchLabels: {a: b}}\n  targetPorts: [{number: 1}]\n  appProtocol: h2c"),
            "spec.appProtocol: found \"h2c\"; expected http or kubernetes.io/h2c",
        ),
        (
            pool_v1(
                "  selector: {matchLabels: {a: b}}\n  targetPorts: [{number: 1}]\n  endpointPickerRef: {}",
            ),
            "spec.endpointPickerRef.name: it is missing",
        ),
        (
            pool_v1(
                "  selector: {matchLabels: {a: b}}\n  targetPorts: [{number: 1}]\n  endpointPickerRef: {name: a, failureMode: Open}",
            ),
            "found \"Open\"; expected FailClose or FailOpen",
        ),
    ] {
        let manifest = read(&text);
        let told: Vec<String> = manifest.faults.iter().map(ToString::to_string).collect();
        assert!(told.len() == 1 && told[0].contains(says), "{says}\n{told:?}");
        assert_eq!((manifest.faults[0].kind, manifest.pools.len()), (FaultKind::InvalidField, 0), "{says}");
        assert!(manifest.faults[0].kind.leaves_out());
    }
}

#[test]
fn all_faults_of_a_document_are_told_at_once_and_its_siblings_are_read() {
    let good = pool_v1("  selector: {matchLabels: {a: b}}\n  targetPorts: [{number: 1}]");
    let manifest = read(&format!(
        "{}---\n{good}",
        pool_v1("  selector: {matchLabels: {a: 1}}\n  targetPorts: 80\n  appProtocol: x")
    ));
    assert_eq!((manifest.pools.len(), manifest.faults.len()), (1, 3));
    assert_eq!(manifest.pools[0].position.line, 9);
}

#[test]
fn unknown_fields_are_told_and_ignored() {
    let text = pool_v1(
        "  selector: {matchLabels: {a: b}, matchExpressions: []}\n  targetPorts: [{number: 1, name: x}]\n  targetPort: 8000\n  xyz: 1",
    );
    assert_eq!(read(&text).pools.len(), 1);
    assert_eq!(
        faults(&text),
        [
            "f.yaml:7:3: spec.targetPort: there is no such field; expected targetPorts; using nothing: it is ignored",
            "f.yaml:8:3: spec.xyz: there is no such field; expected one of selector, targetPorts, appProtocol, endpointPickerRef; using nothing: it is ignored",
            "f.yaml:5:35: spec.selector.matchExpressions: there is no such field; expected one of matchLabels; using nothing: it is ignored",
            "f.yaml:6:29: spec.targetPorts[0].name: there is no such field; expected one of number; using nothing: it is ignored",
        ]
    );
}

#[test]
fn what_every_object_needs_is_asked_for() {
    let spec = "spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 1}]}";
    let head = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool";
    for (text, says) in [
        (format!("{head}\n{spec}"), "f.yaml:1:1: metadata: it is missing"),
        (format!("{head}\nmetadata: {{}}\n{spec}"), "metadata.name: it is missing"),
        (format!("{head}\nmetadata: {{name: }}\n{spec}"), "metadata.name: it is missing"),
        (
            format!("{head}\nmetadata: {{name: 7}}\n{spec}"),
            "metadata.name: found the number \"7\"; expected a string: quote it",
        ),
        (format!("{head}\nmetadata: {{name: My_Pool}}\n{spec}"), "metadata.name: found \"My_Pool\""),
        (
            format!("{head}\nmetadata: {{name: a, namespace: a.b}}\n{spec}"),
            "metadata.namespace: found \"a.b\"",
        ),
        (
            format!("{head}\nmetadata: {{name: a, annotations: [b]}}\n{spec}"),
            "metadata.annotations: found a list",
        ),
        (
            format!("{head}\nmetadata: {{name: a, annotations: {{b: {}}}}}\n{spec}", "x".repeat(256 << 10)),
            "they hold 262145 bytes",
        ),
        (format!("{head}\nmetadata: {{name: a}}"), "f.yaml:1:1: spec: it is missing"),
        ("kind: InferencePool".to_owned(), "apiVersion: it is missing"),
        (
            "apiVersion: v1".to_owned(),
            "kind: it is missing; expected it to be given; using nothing: the document is left out",
        ),
        ("- a".to_owned(), "f.yaml:1:1: document: found a list; expected a mapping"),
        ("text".to_owned(), "document: found \"text\""),
    ] {
        let told = faults(&text);
        assert!(told.len() == 1 && told[0].contains(says), "{says}\n{told:?}");
    }
}

#[test]
fn versions_that_are_not_served_and_kinds_that_are_nearly_ours_are_faults() {
    for (api_version, kind, fault, says) in [
        (
            "inference.networking.k8s.io/v1beta9",
            "InferencePool",
            FaultKind::UnknownVersion,
            "f.yaml:1:13: apiVersion: \"inference.networking.k8s.io/v1beta9\" is not served for InferencePool; expected inference.networking.k8s.io/v1 or inference.networking.x-k8s.io/v1alpha2; using nothing: the document is left out",
        ),
        ("inference.networking.k8s.io/v1alpha2", "InferencePool", FaultKind::UnknownVersion, "is not served"),
        ("example.com/v1", "InferenceObjective", FaultKind::UnknownVersion, "is not served"),
        (
            "discovery.k8s.io/v1beta1",
            "EndpointSlice",
            FaultKind::UnknownVersion,
            "expected discovery.k8s.io/v1",
        ),
        (
            "inference.networking.k8s.io/v1",
            "InferencePol",
            FaultKind::InvalidField,
            "there is no \"InferencePol\" in inference.networking.k8s.io; expected InferencePool",
        ),
    ] {
        let manifest = read(&format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}"));
        assert_eq!(manifest.faults.len(), 1);
        assert_eq!(manifest.faults[0].kind, fault);
        assert!(manifest.faults[0].to_string().contains(says), "{}", manifest.faults[0]);
    }
}

#[test]
fn kinds_without_meaning_here_are_passed_over() {
    let manifest = read(
        "apiVersion: v1\nkind: Service\nmetadata: {name: svc}\nspec: {y: on}\n---\n---\n# nothing\n---\nkind: HTTPRoute\napiVersion: gateway.networking.k8s.io/v1\n---\napiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: InferencePoolImport\nmetadata: {name: 7}\n",
    );
    assert_eq!(manifest.faults, []);
    let passed: Vec<String> = manifest.passed_over.iter().map(ToString::to_string).collect();
    assert_eq!(
        passed,
        [
            "f.yaml:1:1: Service svc: passed over, it has no meaning here",
            "f.yaml:9:1: HTTPRoute : passed over, it has no meaning here",
            "f.yaml:12:1: InferencePoolImport : passed over, it has no meaning here",
        ]
    );
}

#[test]
fn lists_are_unpacked_however_deep() {
    let pool = "{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {name: NAME}, spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 1}]}}";
    let (one, two) = (pool.replace("NAME", "one"), pool.replace("NAME", "two"));
    let manifest = read(&format!(
        "kind: List\napiVersion: v1\nitems:\n- {one}\n- kind: InferencePoolList\n  apiVersion: v1\n  items: [{two}]\n- 7\n"
    ));
    let names: Vec<&str> = manifest.pools.iter().map(|pool| pool.id.name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(manifest.pools[1].position.to_string(), "f.yaml:7:11");
    assert_eq!(manifest.faults.len(), 1);
}

#[test]
fn a_model_has_a_criticality_and_targets_by_weight() {
    let model = |spec: &str| {
        format!(
            "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata: {{name: m, creationTimestamp: \"2025-01-02T03:04:05Z\"}}\nspec:\n  poolRef: {{name: p}}\n  modelName: food\n{spec}"
        )
    };
    let text =
        model("  criticality: Critical\n  targetModels: [{name: a, weight: 10}, {name: b, weight: 90}]");
    let manifest = read(&text);
    assert_eq!(manifest.faults, []);
    let read_model = &manifest.models[0];
    assert_eq!(
        (read_model.model_name.as_str(), read_model.criticality),
        ("food", Some(Criticality::Critical))
    );
    assert_eq!(read_model.pool, PoolId::new("default", "p"));
    assert_eq!(read_model.created.as_deref(), Some("2025-01-02T03:04:05Z"));
    let target = |model: &str, weight| ModelTarget { model: model.to_owned(), weight };
    assert_eq!(read_model.targets, [target("a", 10), target("b", 90)]);
    assert_eq!(
        [Criticality::Critical, Criticality::Standard, Criticality::Sheddable].map(Criticality::priority),
        [100, 0, -100]
    );

    assert_eq!(
        read(&model("  targetModels: [{name: a}, {name: b}]")).models[0].targets,
        [target("a", 1), target("b", 1)]
    );
    assert_eq!(read(&model("")).models[0].targets, []);
    let many = |count: usize| {
        model(&format!("  targetModels: [{}]", vec!["{name: a, weight: 1}"; count].join(", ")))
    };
    assert_eq!(read(&many(10)).models.len(), 1);
    for (text, says) in [
        (many(11), "spec.targetModels: found 11 targets; expected at most 10"),
        (
            model("  targetModels: [{name: a, weight: 1}, {name: b}]"),
            "1 of 2 targets have a weight; expected all or none",
        ),
        (model("  targetModels: [{name: a, weight: 0}]"), "expected a whole number from 1 to 1000000"),
        (model("  targetModels: [{name: a, weight: 1000001}]"), "expected a whole number from 1 to 1000000"),
        (model("  criticality: Default"), "expected Critical or Standard or Sheddable"),
        (text.replace("modelName: food", "modelName: ''"), "spec.modelName: found \"\""),
        (text.replace("modelName: food", ""), "spec.modelName: it is missing"),
        (text.replace("poolRef: {name: p}", ""), "spec.poolRef: it is missing"),
        (
            text.replace("{name: p}", "{name: p, kind: Service}"),
            "spec.poolRef.kind: found \"Service\"; expected InferencePool",
        ),
        (
            text.replace("{name: p}", "{name: p, group: example.com}"),
            "spec.poolRef.group: found \"example.com\"",
        ),
    ] {
        let manifest = read(&text);
        assert_eq!((manifest.models.len(), manifest.faults.len()), (0, 1), "{says}");
        assert!(manifest.faults[0].to_string().contains(says), "{}", manifest.faults[0]);
    }
}

#[test]
fn an_objective_has_a_priority_of_any_size() {
    let objective = |spec: &str| {
        format!(
            "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceObjective\nmetadata: {{name: o, namespace: ns}}\nspec: {{poolRef: {{name: p, group: inference.networking.k8s.io}}{spec}}}"
        )
    };
    for (spec, priority) in [
        ("", 0),
        (", priority: -7", -7),
        (", priority: 9223372036854775807", i64::MAX),
        (", priority: +3", 3),
    ] {
        let manifest = read(&objective(spec));
        assert_eq!(manifest.objectives[0].priority, priority);
        assert_eq!(manifest.objectives[0].pool, PoolId::new("ns", "p"));
    }
    for spec in [", priority: 9223372036854775808", ", priority: '1'", ", priority: 1.5", ", priority: high"]
    {
        assert_eq!(read(&objective(spec)).faults[0].key, "spec.priority", "{spec}");
    }
}

#[test]
fn a_rewrite_has_rules_and_weights_of_zero_are_even() {
    let rewrite = |rules: &str| {
        format!(
            "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModelRewrite\nmetadata: {{name: r}}\nspec:\n  poolRef: {{name: p}}\n  rules: {rules}"
        )
    };
    let manifest = read(&rewrite(
        "[{matches: [{model: {type: Exact, value: a}}, {model: {value: b}}], targets: [{modelRewrite: c, weight: 0}, {modelRewrite: d, weight: 3}]}, {targets: [{modelRewrite: e, weight: 0}, {modelRewrite: f, weight: 0}]}]",
    ));
    assert_eq!(manifest.faults, []);
    let rules = &manifest.rewrites[0].rules;
    let weights = |rule: usize| rules[rule].targets.iter().map(|target| target.weight).collect::<Vec<_>>();
    assert_eq!((rules[0].models.clone(), weights(0)), (vec!["a".to_owned(), "b".to_owned()], vec![0, 3]));
    assert_eq!((rules[1].models.len(), weights(1)), (0, vec![1, 1]));
    for (rules, key) in [
        ("[]", "spec.rules"),
        ("[{}]", "spec.rules[0].targets"),
        ("[{targets: [{weight: 1}]}]", "spec.rules[0].targets[0].modelRewrite"),
        (
            "[{matches: [{model: {type: Regex, value: a}}], targets: [{modelRewrite: b}]}]",
            "spec.rules[0].matches[0].model.type",
        ),
        ("[{matches: [{}], targets: [{modelRewrite: b}]}]", "spec.rules[0].matches[0].model"),
    ] {
        let manifest = read(&rewrite(rules));
        assert_eq!((manifest.rewrites.len(), manifest.faults[0].key.as_str()), (0, key), "{rules}");
    }
}

#[test]
fn a_slice_is_read_and_held_to_its_address_type() {
    let slice = |body: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {{app: a}}}}\n{body}"
        )
    };
    let manifest = read(&slice(
        "addressType: IPv6\nports: [{name: http, port: 8000}, {port: 53, protocol: UDP}, {name: any}]\nendpoints:\n- addresses: ['FD00:0::1', 'fd00::2']\n  conditions: {ready: null}\n  targetRef: {kind: Pod, name: pod-1}\n- addresses: [fd00::3]\n  conditions: {ready: true, serving: true, terminating: true}\n",
    ));
    assert_eq!(manifest.faults, []);
    let read_slice = &manifest.slices[0];
    let numbers: Vec<_> = read_slice.ports.iter().map(|port| port.number).collect();
    assert_eq!((read_slice.address_type, numbers), (AddressType::Ipv6, vec![8000]));
    let endpoints: Vec<_> =
        read_slice.endpoints.iter().map(|e| (&*e.address, e.ready, e.target_name.as_deref())).collect();
    assert_eq!(endpoints, [("fd00::1", true, Some("pod-1")), ("fd00::3", false, None)]);
    let many = |count: usize| {
        format!("addressType: IPv4\nendpoints: [{}]", vec!["{addresses: [10.0.0.1]}"; count].join(", "))
    };
    assert_eq!(read(&slice(&many(1000))).slices.len(), 1);
    for (body, says) in [
        ("endpoints: []", "addressType: it is missing"),
        ("addressType: DNS", "expected IPv4 or IPv6 or FQDN"),
        (
            "addressType: IPv4\nendpoints: [{addresses: [fd00::1]}]",
            "endpoints[0].addresses[0]: found \"fd00::1\"; expected an IPv4 address",
        ),
        ("addressType: IPv4\nendpoints: [{addresses: [10.0.0.01]}]", "expected an IPv4 address"),
        ("addressType: IPv6\nendpoints: [{addresses: ['[fd00::1]']}]", "expected an IPv6 address"),
        ("addressType: FQDN\nendpoints: [{addresses: ['a b']}]", "expected a DNS name"),
        ("addressType: IPv4\nendpoints: [{addresses: []}]", "found 0 addresses"),
        ("addressType: IPv4\nendpoints: [{}]", "endpoints[0].addresses: found 0 addresses"),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], conditions: {ready: 'yes'}}]",
            "endpoints[0].conditions.ready: found \"yes\"; expected true or false",
        ),
        ("addressType: IPv4\nports: [{port: 0}]", "ports[0].port"),
        (&many(1001), "found 1001 endpoints; expected at most 1000"),
    ] {
        let manifest = read(&slice(body));
        assert_eq!((manifest.slices.len(), manifest.faults.len()), (0, 1), "{says}: {:?}", manifest.faults);
        assert!(manifest.faults[0].to_string().contains(says), "{}", manifest.faults[0]);
    }
}
