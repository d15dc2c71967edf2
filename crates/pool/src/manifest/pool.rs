//! InferencePool, both versions.

use std::collections::BTreeMap;

use super::{InferencePool, Object, PickerRef};
use crate::fields::{Fields, Read, Reader, all};
use crate::names::is_dns_subdomain;
use crate::policy::{AppProtocol, PoolId, PoolVersion};
use crate::yaml::Node;

const LABELS_MAX: usize = 64;
const PORTS_MAX: usize = 8;

/// Where v1alpha2 expects a picker that names no port.
const EXT_PROC_PORT: u16 = 9002;

const PROTOCOLS: [(&str, AppProtocol); 2] =
    [("http", AppProtocol::Http), ("kubernetes.io/h2c", AppProtocol::H2c)];

pub(super) fn read_v1(reader: &mut Reader, node: &Node) -> Read<InferencePool> {
    let object = Object::read(reader, node, "InferencePool", &["spec", "status"])?;
    let spec = object.spec(reader, &["selector", "targetPorts", "appProtocol", "endpointPickerRef"])?;
    let selector = selector_v1(reader, &spec);
    let target_ports = target_ports(reader, &spec);
    let app_protocol = spec.word(reader, "appProtocol", &PROTOCOLS);
    let picker = picker_v1(reader, &spec);
    let annotations = object.annotations(reader);
    Ok(InferencePool {
        id: PoolId { namespace: object.namespace, name: object.name },
        version: PoolVersion::V1,
        position: object.position,
        selector: selector?,
        target_ports: target_ports?,
        app_protocol: app_protocol?.unwrap_or_default(),
        picker: picker?,
        annotations: annotations?,
    })
}

pub(super) fn read_v1alpha2(reader: &mut Reader, node: &Node) -> Read<InferencePool> {
    let object = Object::read(reader, node, "InferencePool", &["spec", "status"])?;
    let spec = object.spec(reader, &["selector", "targetPortNumber", "extensionRef"])?;
    let selector = selector(reader, &spec, "selector");
    let target_port = spec.whole(reader, "targetPortNumber", 1..=65_535);
    let target_port = spec.required(reader, "targetPortNumber", target_port);
    let picker = picker_v1alpha2(reader, &spec);
    let annotations = object.annotations(reader);
    Ok(InferencePool {
        id: PoolId { namespace: object.namespace, name: object.name },
        version: PoolVersion::V1Alpha2,
        position: object.position,
        selector: selector?,
        target_ports: vec![target_port?],
        app_protocol: AppProtocol::Http,
        picker: picker?,
        annotations: annotations?,
    })
}

fn selector_v1(reader: &mut Reader, spec: &Fields<'_>) -> Read<BTreeMap<String, String>> {
    let fields = spec.child(reader, "selector", &["matchLabels"]);
    let fields = spec.required(reader, "selector", fields)?;
    selector(reader, &fields, "matchLabels")
}

fn selector(reader: &mut Reader, fields: &Fields<'_>, name: &str) -> Read<BTreeMap<String, String>> {
    let labels = fields.labels(reader, name);
    let labels = fields.required(reader, name, labels)?;
    if labels.is_empty() || labels.len() > LABELS_MAX {
        let expected = format!("1 to {LABELS_MAX}");
        return Err(fields.invalid(reader, name, format!("found {} labels", labels.len()), expected));
    }
    Ok(labels)
}

fn target_ports(reader: &mut Reader, spec: &Fields<'_>) -> Read<Vec<u16>> {
    let items = spec.list(reader, "targetPorts")?;
    if items.is_empty() || items.len() > PORTS_MAX {
        let expected = format!("1 to {PORTS_MAX}");
        return Err(spec.invalid(reader, "targetPorts", format!("found {} ports", items.len()), expected));
    }
    let mut ports: Vec<u16> = Vec::with_capacity(items.len());
    all(items.into_iter().map(|(path, item)| {
        let fields = Fields::open(reader, item, path, &["number"])?;
        let number = fields.whole(reader, "number", 1..=65_535);
        let number = fields.required(reader, "number", number)?;
        if ports.contains(&number) {
            return Err(fields.invalid(
                reader,
                "number",
                format!("the port {number} is given twice"),
                "each port once",
            ));
        }
        ports.push(number);
        Ok(())
    }))?;
    Ok(ports)
}

fn picker_v1(reader: &mut Reader, spec: &Fields<'_>) -> Read<Option<PickerRef>> {
    let known = ["group", "kind", "name", "port", "failureMode"];
    let Some(fields) = spec.child(reader, "endpointPickerRef", &known)? else {
        return Ok(None);
    };
    let port = fields.child(reader, "port", &["number"]).and_then(|port| match port {
        None => Ok(None),
        Some(port) => {
            let number = port.whole(reader, "number", 1..=65_535);
            port.required(reader, "number", number).map(Some)
        }
    });
    picker(reader, &fields, port).map(Some)
}

fn picker_v1alpha2(reader: &mut Reader, spec: &Fields<'_>) -> Read<Option<PickerRef>> {
    let known = ["group", "kind", "name", "portNumber", "failureMode"];
    let Some(fields) = spec.child(reader, "extensionRef", &known)? else {
        return Ok(None);
    };
    let port = fields.whole(reader, "portNumber", 1..=65_535).map(|port| Some(port.unwrap_or(EXT_PROC_PORT)));
    picker(reader, &fields, port).map(Some)
}

fn picker(reader: &mut Reader, fields: &Fields<'_>, port: Read<Option<u16>>) -> Read<PickerRef> {
    let group = fields.text_that(
        reader,
        "group",
        |group| group.is_empty() || is_dns_subdomain(group),
        "an API group",
    );
    let kind = fields.text_that(reader, "kind", |kind| !kind.is_empty(), "a kind such as Service");
    let name = fields.text_that(reader, "name", is_dns_subdomain, "the name of a Service");
    let name = fields.required(reader, "name", name);
    let fail_open = fields.word(reader, "failureMode", &[("FailClose", false), ("FailOpen", true)]);
    Ok(PickerRef {
        group: group?.unwrap_or_default().to_owned(),
        kind: kind?.unwrap_or("Service").to_owned(),
        name: name?.to_owned(),
        port: port?,
        fail_open: fail_open?.unwrap_or_default(),
    })
}
