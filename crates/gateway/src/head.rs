//! What of a request's head is let in: within its bounds, and with one meaning only. The codec has refused what is no
//! HTTP; here goes what another server could read differently than we do (RFC 9112, sections 3.2, 6.1 and 11.2).

use director::{Reason, Refusal};
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Uri, Version};
use telemetry::{Limit, LimitCounters};

use crate::limits::Limits;

/// What a field takes besides its name and value: `: ` and the line's end.
const FIELD_BYTES: usize = 4;

/// Refuses a head that may not come in.
pub(crate) fn check<B>(
    request: &Request<B>,
    limits: &Limits,
    counters: &LimitCounters,
) -> Result<(), Refusal> {
    let headers = request.headers();
    let (fields, fields_max) = (headers.len(), limits.headers_max);
    if fields > fields_max {
        counters.reached(Limit::Headers);
        let message = format!("the request has {fields} header fields; at most {fields_max} are taken");
        return Err(Refusal::new(Reason::HeadersTooLarge, message));
    }
    let (bytes, bytes_max) = (bytes(request.uri(), headers), limits.header_bytes_max);
    if bytes > bytes_max {
        counters.reached(Limit::HeaderBytes);
        let message = format!("the request's head has {bytes} bytes; at most {bytes_max} are taken");
        return Err(Refusal::new(Reason::HeadersTooLarge, message));
    }
    check_target(request.method(), request.uri())
        .and_then(|()| check_host(request.version(), request.uri(), headers))
        .and_then(|()| check_length(headers))
        .map_err(|what| Refusal::new(Reason::Malformed, what))
}

fn bytes(uri: &Uri, headers: &HeaderMap) -> usize {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    headers
        .iter()
        .fold(target, |bytes, (name, value)| bytes + name.as_str().len() + value.len() + FIELD_BYTES)
}

fn check_target(method: &Method, uri: &Uri) -> Result<(), &'static str> {
    if method == Method::CONNECT {
        return Err("CONNECT: this is a gateway, not a tunnel");
    }
    if uri.path() == "*" && method != Method::OPTIONS {
        return Err("the target `*` is for OPTIONS alone");
    }
    if uri.path_and_query().is_some_and(|target| !target.as_str().is_ascii()) {
        return Err("the target has bytes that are not ASCII: encode them with %");
    }
    Ok(())
}

/// An HTTP/1.1 request has exactly one `Host`, which is one; HTTP/2's is in the target.
fn check_host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    if uri.authority().is_some_and(|authority| !is_host(authority.as_str().as_bytes())) {
        return Err("the target's authority names no host");
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err("the request has more than one Host field"),
        (Some(host), None) if !is_host(host.as_bytes()) => Err("the Host field names no host"),
        (None, None) if version == Version::HTTP_11 => Err("the request has no Host field"),
        _ => Ok(()),
    }
}

/// Whether that could be `host[:port]`: what would split a list or a line, or begin a path, cannot.
fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_graphic() && !b"/?#@,;\\\"<>".contains(byte))
}

/// One length at most, and `chunked`, once: another coding would be taken off on this hop, and the next would not know.
fn check_length(headers: &HeaderMap) -> Result<(), &'static str> {
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err("the request has more than one Content-Length field");
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err("Transfer-Encoding: only `chunked` is taken, once"),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn is_taken(version: Version, method: Method, uri: &str, fields: &[(&'static str, &str)]) -> bool {
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap(), &Limits::default(), &LimitCounters::default()).is_ok()
    }

    #[test]
    fn hosts_are_checked_as_the_rfc_has_it() {
        let taken = |version, hosts: &[&str]| {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            is_taken(version, Method::POST, "/", &fields)
        };
        for host in ["h", "h:80", "[::1]:80", ""] {
            assert!(taken(Version::HTTP_11, &[host]), "{host}");
        }
        assert!(taken(Version::HTTP_10, &[]) && taken(Version::HTTP_2, &[]));
        assert!(!is_taken(Version::HTTP_2, Method::POST, "http://b@a/", &[]));
        assert!(!taken(Version::HTTP_11, &[]) && !taken(Version::HTTP_11, &["a", "a"]));
        for host in ["a b", "a/b", "a,b", "a@b", "a\tb"] {
            assert!(!taken(Version::HTTP_11, &[host]), "{host}");
        }
    }

    #[test]
    fn a_target_is_what_its_method_takes() {
        let taken = |method, uri: &str| is_taken(Version::HTTP_2, method, uri, &[]);
        assert!(taken(Method::POST, "/v1/completions?a=%C3%A9") && taken(Method::OPTIONS, "*"));
        assert!(!taken(Method::POST, "*") && !taken(Method::CONNECT, "h:80") && !taken(Method::POST, "/é"));
    }

    #[test]
    fn the_only_transfer_coding_is_chunked() {
        let taken = |values: &[&str]| {
            let fields: Vec<_> = values.iter().map(|value| ("transfer-encoding", *value)).collect();
            is_taken(Version::HTTP_2, Method::POST, "/", &fields)
        };
        let lengths = [("content-length", "1"), ("content-length", "1")];
        assert!(!is_taken(Version::HTTP_2, Method::POST, "/", &lengths));
        assert!(taken(&[]) && taken(&["chunked"]) && taken(&["Chunked"]));
        for codings in [&["gzip, chunked"][..], &["chunked, chunked"], &["chunked", "chunked"], &["identity"]]
        {
            assert!(!taken(codings), "{codings:?}");
        }
    }

    #[test]
    fn what_is_beyond_a_limit_is_counted_under_its_name() {
        let (limits, counters) = (Limits { headers_max: 2, ..Limits::default() }, LimitCounters::default());
        let mut request = Request::new(());
        for name in ["a", "b", "c"] {
            request.headers_mut().insert(name, HeaderValue::from_static("1"));
        }
        assert_eq!(check(&request, &limits, &counters).unwrap_err().reason, Reason::HeadersTooLarge);
        assert_eq!(counters.count(Limit::Headers), 1);
        let limits = Limits { header_bytes_max: 17, ..Limits::default() };
        assert!(check(&request, &limits, &counters).is_err());
        assert_eq!(counters.count(Limit::HeaderBytes), 1);
        let limits = Limits { header_bytes_max: 19, ..Limits::default() };
        assert_eq!(check(&request, &limits, &counters).unwrap_err().reason, Reason::Malformed);
    }
}
