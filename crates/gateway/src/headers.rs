//! What a proxy does to headers (RFC 9110, section 7.6): drops what is for one hop, keeps the rest, says who asked.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use director::Control;
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Uri};

use crate::handler::Client;

/// The reason word of an answer that Pointsman made itself.
pub(crate) const X_POINTSMAN_REASON: HeaderName = HeaderName::from_static("x-pointsman-reason");
/// Names one request across logs.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Headers for one hop (RFC 9110, section 7.6.1), besides those that `Connection` names. `Trailer` is not one: without
/// it neither side sends trailers.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    TE,
    UPGRADE,
];

/// Headers that steer an endpoint picker: for Pointsman, never for a model server.
const CONTROL: [&str; 10] = [
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-subset",
    "x-gateway-destination-endpoint-served",
    "x-gateway-inference-objective",
    "x-gateway-inference-fairness-id",
    "x-gateway-model-name-rewrite",
    "x-llm-d-inference-objective",
    "x-llm-d-inference-fairness-id",
    "x-llm-d-model-name-rewrite",
    "x-pointsman-reason",
];

/// Headers by which those in front of us tell who asked.
const FORWARDED: [&str; 7] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
];

/// Longest request id that is taken from a client, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Whether clients are believed what they say in control headers and of who asked before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientHeaders {
    /// They are: clients are colleagues, or a proxy in front has made their headers sound.
    #[default]
    Trust,
    /// They are not: such headers are dropped before anything reads them.
    Distrust,
}

/// Drops what only a trusted client may say.
pub(crate) fn distrust(headers: &mut HeaderMap) {
    for name in CONTROL.iter().chain(&FORWARDED) {
        headers.remove(*name);
    }
}

/// Makes a client's headers fit to be sent to a model server.
pub(crate) fn to_upstream(headers: &mut HeaderMap, uri: &Uri, client: Client, request_id: &HeaderValue) {
    let trailers = wants_trailers(headers);
    drop_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    headers.remove(EXPECT);
    join_cookies(headers);
    for name in CONTROL {
        headers.remove(name);
    }
    // A target in absolute form beats the Host field (RFC 9112, section 3.2.2).
    if let Some(authority) = uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(HOST, host);
    }
    headers.insert(X_FORWARDED_FOR, forwarded_for(headers, client.peer));
    let scheme = if client.tls { "https" } else { "http" };
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(scheme));
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// What a client says by control headers, under their present names or their newer ones.
pub(crate) fn control(headers: &HeaderMap) -> Control<'_> {
    let said = |names: [&str; 2]| names.into_iter().find_map(|name| headers.get(name)?.to_str().ok());
    Control {
        objective: said(["x-gateway-inference-objective", "x-llm-d-inference-objective"]),
        fairness_id: said(["x-gateway-inference-fairness-id", "x-llm-d-inference-fairness-id"]),
        model_rewrite: said(["x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite"]),
    }
}

/// Makes a request's headers fit for a body that was rewritten, now of `length`, and its answer one that can be read.
pub(crate) fn rewritten(headers: &mut HeaderMap, length: Option<u64>) {
    headers.remove(ACCEPT_ENCODING);
    if let Some(length) = length
        && headers.contains_key(CONTENT_LENGTH)
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// HTTP/2 may split cookies over fields; HTTP/1.1 has one (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies = headers.get_all(COOKIE);
    if cookies.iter().nth(1).is_none() {
        return;
    }
    let joined = cookies.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    // Header values with `; ` between them are a header value.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// Those who asked before us, and the one who asks us.
fn forwarded_for(headers: &HeaderMap, peer: IpAddr) -> HeaderValue {
    let mut chain = String::with_capacity(48);
    let before = headers.get_all(X_FORWARDED_FOR).iter().filter_map(|known| known.to_str().ok());
    for known in before.filter(|known| !known.trim().is_empty()) {
        chain.push_str(known);
        chain.push_str(", ");
    }
    // Writing to a String cannot fail.
    let _ = write!(chain, "{}", peer.to_canonical());
    // Parts of header values and an address are a header value.
    HeaderValue::try_from(chain).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Makes a model server's headers fit to be sent to a client.
pub(crate) fn to_client(headers: &mut HeaderMap) {
    drop_hop_by_hop(headers);
    headers.remove(X_POINTSMAN_REASON);
}

/// The client's request id, where it is a sound one; else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(X_REQUEST_ID) {
        Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX => id.clone(),
        _ => new_request_id(),
    }
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Whether `TE` asks for trailers (RFC 9110, section 10.1.4).
fn wants_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// A UUID-shaped id (RFC 9562, version 8: numbers of our own): unique by a keyed hash of a counter; the key
/// is the process's own.
fn new_request_id() -> HeaderValue {
    use std::hash::{BuildHasher, RandomState};
    static RANDOM: OnceLock<RandomState> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Relaxed);
    let random = RANDOM.get_or_init(RandomState::new);
    let (high, low) = (random.hash_one((number, 0)), random.hash_one((number, 1)));
    let id = format!(
        "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        ((low >> 48) & 0x3fff) | 0x8000,
        low & 0xffff_ffff_ffff
    );
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn sent(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = headers(pairs);
        let uri = Uri::from_static("/v1/completions");
        let client = Client { peer: [192, 0, 2, 1].into(), tls: false, draining: false };
        to_upstream(&mut headers, &uri, client, &HeaderValue::from_static("id-1"));
        headers
    }

    #[test]
    fn what_connection_names_stays_on_its_hop() {
        let sent = sent(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("te", "gzip;q=0.5, trailers"),
            ("accept", "*/*"),
        ]);
        assert!(!sent.contains_key("x-private"));
        assert_eq!(sent["connection"], "te");
        assert_eq!(sent["te"], "trailers");
        assert_eq!(sent["accept"], "*/*");
    }

    #[test]
    fn the_client_is_added_to_the_chain_of_those_who_asked() {
        assert_eq!(sent(&[("x-forwarded-for", "203.0.113.9")])["x-forwarded-for"], "203.0.113.9, 192.0.2.1");
        assert_eq!(sent(&[])["x-forwarded-for"], "192.0.2.1");
        assert_eq!(sent(&[])["x-forwarded-proto"], "http");
    }

    #[test]
    fn a_distrusted_client_says_nothing_of_who_asked() {
        for name in CONTROL.iter().chain(&FORWARDED) {
            let mut headers = headers(&[(name, "x"), ("accept", "*/*")]);
            distrust(&mut headers);
            assert_eq!(headers.len(), 1, "{name}");
        }
    }

    #[test]
    fn cookies_that_were_split_are_one_again() {
        let mut headers = headers(&[("cookie", "a=1")]);
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn no_control_header_reaches_a_model_server() {
        for name in CONTROL {
            assert!(!sent(&[(name, "x")]).contains_key(name), "{name}");
        }
    }

    #[test]
    fn a_clients_request_id_is_kept_and_a_new_one_is_unique() {
        assert_eq!(request_id(&headers(&[("x-request-id", "mine")])), "mine");
        let made = (request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
        assert_ne!(made.0, made.1);
        assert_eq!(made.0.len(), 36);
    }
}
