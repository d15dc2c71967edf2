//! Which fields of a picker's objects an overlay may set.
//!
//! Whoever may write ConfigMaps in a pool's namespace must not become someone else in the gateway's. So what is open is listed, and
//! all else is closed: identity, the image and what it runs, the host, other pods' traffic, other people's secrets.

use pool::yaml::{Node, Place, Value as Yaml};

use super::Part;
use super::directive;
use super::document::{self, Wrong};
use crate::render::{self, CONTAINER};

/// What may be set in a place.
enum Open {
    /// Everything, directives and `null` too.
    All,
    /// Only what stands there already.
    Equal(&'static str),
    /// These fields.
    Fields(&'static [(&'static str, Open)]),
    /// The items of a list.
    Items(&'static Open),
    /// As [`Open::Fields`] of an item, which may also be taken away again: the default has none of these.
    Item(&'static [(&'static str, Open)]),
    /// Keys of the writer's, those refused that this knows.
    Names(fn(&str) -> Option<&'static str>),
    /// A scalar that this finds no fault with.
    Text(fn(&str) -> Option<&'static str>),
    /// What also has to be true of a map.
    And(fn(&[(pool::yaml::Key, Node)]) -> Option<&'static str>, &'static Open),
}

use Open::{All, And, Equal, Fields, Item, Items, Names, Text};

const DEPLOYMENT: Open = Fields(&[
    ("apiVersion", Equal("apps/v1")),
    ("kind", Equal("Deployment")),
    (
        "spec",
        Fields(&[
            ("replicas", All),
            ("strategy", All),
            (
                "template",
                Fields(&[
                    ("metadata", Fields(&[("labels", Names(label)), ("annotations", Names(pod_annotation))])),
                    ("spec", POD),
                ]),
            ),
        ]),
    ),
]);

const POD: Open = Fields(&[
    ("affinity", All),
    ("containers", Items(&And(is_the_picker, &PICKER))),
    ("nodeSelector", All),
    ("terminationGracePeriodSeconds", All),
    ("tolerations", All),
    ("topologySpreadConstraints", All),
    ("volumes", Items(&Item(&[("name", All), ("emptyDir", All), ("downwardAPI", All)]))),
]);

const PICKER: Open = Fields(&[
    ("name", All),
    (
        "env",
        Items(&Item(&[
            ("name", Text(variable)),
            ("value", All),
            ("valueFrom", Item(&[("fieldRef", All), ("resourceFieldRef", All)])),
        ])),
    ),
    ("livenessProbe", PROBE),
    (
        "ports",
        Items(&And(is_another_port, &Fields(&[("containerPort", All), ("name", All), ("protocol", All)]))),
    ),
    ("readinessProbe", PROBE),
    ("resources", Fields(&[("limits", All), ("requests", All)])),
    ("startupProbe", PROBE),
    (
        "volumeMounts",
        Items(&Item(&[
            ("name", All),
            ("mountPath", Text(mount_path)),
            ("readOnly", All),
            ("recursiveReadOnly", All),
            ("subPath", Text(sub_path)),
        ])),
    ),
]);

const PROBE: Open = Fields(&[
    ("failureThreshold", All),
    ("initialDelaySeconds", All),
    ("periodSeconds", All),
    ("successThreshold", All),
    ("terminationGracePeriodSeconds", All),
    ("timeoutSeconds", All),
]);

const SERVICE: Open = Fields(&[
    ("apiVersion", Equal("v1")),
    ("kind", Equal("Service")),
    ("metadata", Fields(&[("annotations", Names(service_annotation))])),
    (
        "spec",
        Fields(&[
            ("internalTrafficPolicy", All),
            ("sessionAffinity", All),
            ("sessionAffinityConfig", All),
            ("trafficDistribution", All),
        ]),
    ),
]);

const POD_DISRUPTION_BUDGET: Open = Fields(&[
    ("apiVersion", Equal("policy/v1")),
    ("kind", Equal("PodDisruptionBudget")),
    ("spec", Fields(&[("maxUnavailable", All), ("minAvailable", All)])),
]);

/// Domains whose labels and annotations mean something to the cluster, a mesh, a cloud or us: whoever sets them gets identities,
/// networks, sidecars or other pods' traffic.
const RESERVED_DOMAINS: [&str; 52] = [
    "kubernetes.io",
    "k8s.io",
    "x-k8s.io",
    "pointsman.dev",
    "envoyproxy.io",
    "istio.io",
    "linkerd.io",
    "cncf.io",
    "cni.io",
    "cilium.io",
    "io.cilium",
    "io.cilium.k8s",
    "projectcalico.org",
    "tigera.io",
    "antrea.io",
    "ovn.org",
    "openshift.io",
    "amazonaws.com",
    "k8s.aws",
    "azure.com",
    "azure.workload.identity",
    "gke.io",
    "google.com",
    "googleapis.com",
    "aliyun.com",
    "hashicorp.com",
    "consul.hashicorp.com",
    "cert-manager.io",
    "spiffe.io",
    "kuma.io",
    "dapr.io",
    "opentelemetry.io",
    "datadoghq.com",
    "dynatrace.com",
    "newrelic.com",
    "instana.io",
    "banzaicloud.io",
    "banzaicloud.com",
    "1password.io",
    "1password.com",
    "tumblr.com",
    "nginx.com",
    "nginx.org",
    "openservicemesh.io",
    "kyverno.io",
    "gatekeeper.sh",
    "v1.multus-cni.io",
    "multus-cni.io",
    "tailscale.com",
    "getambassador.io",
    "skupper.io",
    "ngrok.com",
];
/// Parts of names by which injectors of any domain are told what to put into a pod.
const ASKS_INJECTORS: [&str; 4] = ["inject", "sidecar", "image", "proxy"];
/// Labels without a domain by which Services find their pods.
const SELECTED_BY: [&str; 17] = [
    "gateway-name",
    "instance",
    "istio",
    "svc",
    "app",
    "app-name",
    "application",
    "component",
    "control-plane",
    "k8s-app",
    "name",
    "release",
    "role",
    "run",
    "service",
    "tier",
    "pod-template-hash",
];
/// Beginnings of variables that decide whom the picker speaks to and whom it trusts.
const RESERVED_VARIABLES: [&str; 12] = [
    "KUBERNETES_",
    "KUBECONFIG",
    "SSL_CERT_",
    "SSLKEYLOGFILE",
    "LD_",
    "POD_",
    "HOSTALIASES",
    "RES_OPTIONS",
    "LOCALDOMAIN",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "PATH",
];
/// Where nothing of the writer's may be mounted: the program lies there, what it is linked with in other images, or, below
/// /var/run, the account's token.
const RESERVED_PATHS: [&str; 20] = [
    "/pointsman",
    "/var/run",
    "/run",
    "/proc",
    "/sys",
    "/dev",
    "/etc",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/app",
    "/opt",
    "/root",
    "/home",
    "/boot",
    "/nix",
];

fn is_reserved_domain(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    RESERVED_DOMAINS.iter().any(|reserved| {
        domain.strip_suffix(reserved).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn label(key: &str) -> Option<&'static str> {
    if key.starts_with("inference-pool") {
        return Some("it says whose picker this is");
    }
    let bare = key.to_ascii_lowercase();
    let selects = is_reserved_domain(key)
        || SELECTED_BY.contains(&bare.as_str())
        || bare.rsplit('/').next().is_some_and(|name| name.contains("inject"));
    selects.then_some("Services and policies select pods by it")
}

fn pod_annotation(key: &str) -> Option<&'static str> {
    let name = key.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    // Container runtimes know names such as `io.katacontainers.config.…`, with dots and without a domain.
    let to_runtime = !key.contains('/') && key.contains('.');
    let reserved =
        is_reserved_domain(key) || to_runtime || ASKS_INJECTORS.iter().any(|word| name.contains(word));
    reserved.then_some("it may carry privileges of the cluster's, a mesh's, an injector's or a cloud's")
}

fn service_annotation(key: &str) -> Option<&'static str> {
    const PUBLISHERS: [&str; 13] = [
        "external-dns.",
        "service.cilium.io/",
        "io.cilium/",
        "tailscale.com/",
        "getambassador.io/",
        "consul.hashicorp.com/",
        "networking.istio.io/",
        "multicluster.x-k8s.io/",
        "multicluster.openshift.io/",
        "skupper.io/",
        "ngrok.com/",
        "k8s.ngrok.com/",
        "cloud.google.com/neg",
    ];
    let published = PUBLISHERS.iter().any(|publisher| key.starts_with(publisher));
    let ours = key.starts_with("pointsman.dev/") || key.starts_with("gateway.envoyproxy.io/");
    if published {
        Some("it publishes the Service beyond the cluster")
    } else {
        ours.then_some("it is not the Service's")
    }
}

fn variable(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_uppercase();
    let reserved =
        name.ends_with("_PROXY") || RESERVED_VARIABLES.iter().any(|prefix| name.starts_with(prefix));
    reserved.then_some("it decides whom the picker speaks to or trusts")
}

fn mount_path(path: &str) -> Option<&'static str> {
    let below =
        |root: &&str| path.strip_prefix(*root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !path.starts_with('/')
        || path.split('/').any(|part| part == ".." || part == ".")
        || path.contains("//")
        || path.contains(':')
    {
        Some("it is not an absolute path without `.`, `..`, `//` and `:`")
    } else if matches!(path.trim_end_matches('/'), "" | "/var") || RESERVED_PATHS.iter().any(below) {
        Some("the picker's own files and its account's token lie there")
    } else {
        None
    }
}

fn sub_path(path: &str) -> Option<&'static str> {
    let may_leave = path.starts_with('/') || path.contains("..");
    may_leave.then_some("it leaves the volume")
}

fn is_the_picker(item: &[(pool::yaml::Key, Node)]) -> Option<&'static str> {
    (text_of(item, "name") != Some(CONTAINER))
        .then_some("only the container inference-gateway-ext-proc is the picker's")
}

fn is_another_port(item: &[(pool::yaml::Key, Node)]) -> Option<&'static str> {
    // As it is merged, however it is written: 0x232A is 9002 too.
    let port = text_of(item, "containerPort").and_then(document::number).and_then(|port| port.as_i64());
    let own = port.is_none_or(|port| render::PORTS.map(i64::from).contains(&port));
    own.then_some("the picker's own ports stay as they are")
}

fn text_of<'n>(item: &'n [(pool::yaml::Key, Node)], field: &str) -> Option<&'n str> {
    item.iter().find(|(key, _)| key.name == field).and_then(|(_, node)| match &node.value {
        Yaml::Scalar { text, .. } => Some(text.as_str()),
        _ => None,
    })
}

/// What of the document may not be set. `allowed` are fields that an administrator opened, `deployment.spec.template.spec.hostNetwork`.
pub(super) fn closed(part: Part, document: &Node, allowed: &[String]) -> Vec<Wrong> {
    let open = match part {
        Part::Deployment => &DEPLOYMENT,
        Part::Service => &SERVICE,
        Part::PodDisruptionBudget => &POD_DISRUPTION_BUDGET,
    };
    let prefix = format!("{}.", part.key());
    let allowed = allowed.iter().filter_map(|path| path.strip_prefix(&prefix)).collect();
    let mut guard = Guard { allowed, field: Vec::new(), wrong: Vec::new() };
    guard.look(document, Some(open));
    guard.wrong
}

struct Guard<'a> {
    /// Fields that are open besides.
    allowed: Vec<&'a str>,
    field: Vec<String>,
    wrong: Vec<Wrong>,
}

impl Guard<'_> {
    fn look(&mut self, node: &Node, open: Option<&Open>) {
        let field = self.field.join(".");
        if matches!(open, Some(All)) || self.allowed.iter().any(|allowed| is_below(&field, allowed)) {
            return;
        }
        let leads_on = self.allowed.iter().any(|allowed| is_below(allowed, &field));
        match (&node.value, open) {
            (Yaml::Mapping(entries), Some(And(judge, within))) => {
                if let Some(why) = judge(entries)
                    && !leads_on
                {
                    return self.refuse(node.place, why);
                }
                self.look(node, Some(within));
            }
            (Yaml::Mapping(entries), Some(Names(judge))) => {
                for (key, _) in entries {
                    self.name(key, *judge);
                }
            }
            (Yaml::Mapping(entries), Some(Fields(fields))) => self.fields(entries, fields, false),
            (Yaml::Mapping(entries), Some(Item(fields))) => self.fields(entries, fields, true),
            (Yaml::Mapping(entries), _) if leads_on => self.fields(entries, &[], false),
            (Yaml::List(items), Some(Items(of))) => items.iter().for_each(|item| self.look(item, Some(of))),
            (Yaml::List(items), _) if leads_on => items.iter().for_each(|item| self.look(item, None)),
            (Yaml::Scalar { text, .. }, Some(Text(judge))) => {
                if let Some(why) = judge(text) {
                    self.refuse(node.place, why);
                }
            }
            (Yaml::Scalar { text, .. }, Some(Equal(value))) => {
                if text != value {
                    self.refuse(node.place, "it is what it is");
                }
            }
            _ => self.refuse(node.place, CLOSED),
        }
    }

    fn fields(&mut self, entries: &[(pool::yaml::Key, Node)], fields: &[(&str, Open)], may_go: bool) {
        for (key, node) in entries {
            self.field.push(key.name.clone());
            match directive::of(&key.name) {
                Some(directive::Key::SetElementOrder(_)) => {}
                Some(_) if may_go => {}
                Some(_) => self.refuse(key.place, "it would reach fields that are closed"),
                None => {
                    let open = fields.iter().find(|(name, _)| *name == key.name).map(|(_, open)| open);
                    self.look_at(key.place, node, open);
                }
            }
            self.field.pop();
        }
    }

    /// A fault of a closed field is told where its key is.
    fn look_at(&mut self, key: Place, node: &Node, open: Option<&Open>) {
        let before = self.wrong.len();
        self.look(node, open);
        if open.is_none()
            && self.wrong.len() == before + 1
            && self.wrong[before].field == self.field.join(".")
        {
            self.wrong[before].place = key;
        }
    }

    fn name(&mut self, key: &pool::yaml::Key, judge: fn(&str) -> Option<&'static str>) {
        self.field.push(key.name.clone());
        let field = self.field.join(".");
        let why = match directive::of(&key.name) {
            Some(_) => Some("it would reach what is closed"),
            None => judge(&key.name),
        };
        if let Some(why) = why
            && !self.allowed.iter().any(|allowed| is_below(&field, allowed))
        {
            self.refuse(key.place, why);
        }
        self.field.pop();
    }

    fn refuse(&mut self, place: Place, why: &str) {
        self.wrong.push(Wrong {
            place,
            field: self.field.join("."),
            what: format!("it is not open to an overlay: {why}"),
            expected: "one of the open fields (docs/overlays.md), or --allow-overlay at the controller"
                .to_owned(),
        });
    }
}

const CLOSED: &str = "whoever may write this ConfigMap must not decide it in the gateway's namespace";

/// Whether `field` is `of` or below it.
fn is_below(field: &str, of: &str) -> bool {
    field.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
