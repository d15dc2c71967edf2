//! `[https://]HOST:PORT`, as in `--endpoint`.

use pool::EndpointSpec;

/// Reads `HOST:PORT`, `[IPV6]:PORT` or `NAME:PORT`, with `https://` before it where it speaks TLS.
pub(crate) fn endpoint(text: &str) -> Result<EndpointSpec, String> {
    const EXPECTED: &str =
        "expected HOST:PORT, as in 10.0.0.7:8000, [fd00::7]:8000 or vllm-0:8000, or https://HOST:PORT";
    let (tls, address) = match text.strip_prefix("https://") {
        Some(address) => (true, address),
        None => (false, text),
    };
    let (host, port) = address.rsplit_once(':').ok_or(EXPECTED)?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(EXPECTED)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let sound = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    };
    if !sound {
        return Err(EXPECTED.to_owned());
    }
    Ok(EndpointSpec { name: address.into(), host: bare.unwrap_or(host).into(), port, tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_every_kind_are_read() {
        for (text, host, port) in [
            ("10.0.0.7:80", "10.0.0.7", 80),
            ("[fd00::7]:8000", "fd00::7", 8000),
            ("vllm-0.ns:1", "vllm-0.ns", 1),
        ] {
            let spec = endpoint(text).unwrap();
            assert_eq!((&*spec.host, spec.port, spec.tls), (host, port, false));
        }
        assert!(endpoint("https://vllm-0:8443").unwrap().tls);
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for text in [
            "",
            "10.0.0.7",
            ":80",
            "h:0",
            "h:65536",
            "fd00::7:80",
            "[fd00::7]",
            "ftp://h:80",
            "https://h",
            "h:80/x",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }
}
