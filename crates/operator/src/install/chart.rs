//! The installation as a Helm chart: the same objects, with values in the places where flags would be.

use super::{Installation, to_yaml};
use crate::crds;
use crate::render::{Options, shared};

/// A place that a value fills: how it reads in a manifest, and Helm's expression that goes there.
const PLACES: [(&str, &str); 7] = [
    ("@namespace", "{{ .Release.Namespace }}"),
    ("@gatewayNamespace", "{{ .Values.gatewayNamespace }}"),
    ("@image", "{{ .Values.image }}"),
    ("@replicas", "{{ .Values.replicas }}"),
    ("@pickers", "{{ .Values.pickers }}"),
    ("@eppMode", "{{ .Values.eppMode }}"),
    ("@log", "{{ .Values.log }}"),
];

/// An argument that a list of values repeats.
const ALLOW_OVERLAY: &str = "--allow-overlay=@allowOverlay";

/// The files of the chart, by their paths in it; `version` is that of the program.
///
/// # Errors
/// An object that cannot be written as YAML, which a test keeps from happening.
pub fn files(version: &str) -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    let place = |name: &str| format!("@{name}");
    let installation = Installation {
        namespace: place("namespace"),
        options: Options {
            gateway_namespace: place("gatewayNamespace"),
            epp_image: place("image"),
            conformance: false,
        },
        replicas: place("replicas").into(),
        shared_picker: false,
        arguments: vec![
            "--pickers=@pickers".to_owned(),
            "--epp-mode=@eppMode".to_owned(),
            "--log=@log".to_owned(),
            ALLOW_OVERLAY.to_owned(),
        ],
    };
    let picker = shared::picker(&installation.options);
    let mut files = vec![
        ("Chart.yaml".to_owned(), about(version)),
        ("values.yaml".to_owned(), values(version)),
        ("templates/controller.yaml".to_owned(), template(&to_yaml(&installation.objects())?)),
        ("templates/shared-picker.yaml".to_owned(), only_if_shared(&template(&to_yaml(&picker)?))),
    ];
    for definition in crds::all() {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        files.push((format!("crds/{name}.yaml"), to_yaml(std::slice::from_ref(&definition))?));
    }
    Ok(files)
}

/// Fills the places. What is a place and nothing else reads without quotes, so that a number is one.
fn template(yaml: &str) -> String {
    let mut text = String::new();
    for line in yaml.lines() {
        let mut line = line.to_owned();
        if line.contains(ALLOW_OVERLAY) {
            let indent = line.len() - line.trim_start().len();
            line = format!(
                "{0}{{{{- range .Values.allowOverlay }}}}\n{0}- {{{{ printf \"--allow-overlay=%s\" . | quote }}}}\n{0}{{{{- end }}}}",
                " ".repeat(indent)
            );
        }
        for (place, expression) in PLACES {
            for quoted in [format!("'{place}'"), format!("\"{place}\""), place.to_owned()] {
                line = line.replace(&quoted, expression);
            }
        }
        text.extend([&line, "\n"]);
    }
    text
}

fn only_if_shared(template: &str) -> String {
    format!("{{{{- if eq .Values.eppMode \"shared\" }}}}\n{template}{{{{- end }}}}\n")
}

fn about(version: &str) -> String {
    format!(
        "# Written by `cargo xtask chart`.\n\
         apiVersion: v2\n\
         name: pointsman\n\
         description: The controller that makes endpoint pickers of InferencePools\n\
         type: application\n\
         version: {version}\n\
         appVersion: {version}\n\
         kubeVersion: '>=1.27.0-0'\n"
    )
}

fn values(version: &str) -> String {
    format!(
        "# Written by `cargo xtask chart`. What each means: `pointsman controller --help`.\n\
         \n\
         # The image of the controller and of pickers.\n\
         image: pointsman:{version}\n\
         # How many controllers, of which one leads.\n\
         replicas: 2\n\
         # The namespace of Envoy Gateway, where pickers run; it has to be there.\n\
         gatewayNamespace: envoy-gateway-system\n\
         # Whose picker a pool has: auto, managed or self-hosted.\n\
         pickers: auto\n\
         # A picker for each pool (per-pool), or one for all pools without an overlay (shared).\n\
         eppMode: per-pool\n\
         # Fields that overlays may set though they are closed to them, as deployment.spec.template.spec.hostNetwork.\n\
         allowOverlay: []\n\
         # error, warn, info, debug or trace.\n\
         log: info\n"
    )
}
