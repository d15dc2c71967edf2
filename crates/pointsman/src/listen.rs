//! Addresses that are listened on: bound with a clear error, shared between two processes where that is asked for.

use std::io;
use std::net::SocketAddr;

use anyhow::Context;
use nix::libc::{sock_filter, sock_fprog};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted; the kernel may hold it lower (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// What a limit of open files reads as where none can be found out.
const OPEN_FILES_GUESS: u64 = 1024;

/// Listens on `address`; with other processes that do the same where `shared`.
pub(crate) fn bind(address: SocketAddr, flag: &str, shared: bool) -> anyhow::Result<TcpListener> {
    let bound = || -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        if shared {
            socket.set_reuseport(true)?;
        }
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().with_context(|| format!("{flag} {address}: cannot be listened on (port 0 takes a free one)"))
}

/// Takes all new connections to a shared address from the process that listened on it before, so that it can stop
/// without losing one.
///
/// The kernel asks a program which of the sockets gets a connection (SO_ATTACH_REUSEPORT_CBPF, socket(7)). Sockets are
/// numbered in the order they began to listen: number 1 is the newcomer. Once the older is gone there is no number 1, and
/// the kernel chooses among those that are left, which is the newcomer alone.
pub(crate) fn take_over(listener: &TcpListener) -> io::Result<()> {
    const RETURN: u16 = 0x06;
    let mut program = [sock_filter { code: RETURN, jt: 0, jf: 0, k: 1 }];
    let program = sock_fprog { len: 1, filter: program.as_mut_ptr() };
    setsockopt(listener, sockopt::AttachReusePortCbpf, &program).map_err(io::Error::from)
}

/// Raises the limit of open files as far as this process may, and tells it.
pub(crate) fn raise_open_files_max() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return OPEN_FILES_GUESS };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn the_newcomer_gets_all_new_connections_and_keeps_them() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let older = bind(loopback, "--listen", true).unwrap();
        let address = older.local_addr().unwrap();
        assert!(bind(address, "--listen", false).is_err(), "a port in use is an error");
        take_over(&older).unwrap();
        let mut listening = older;
        for _ in 0..3 {
            let newcomer = bind(address, "--listen", true).unwrap();
            take_over(&newcomer).unwrap();
            for _ in 0..50 {
                let (asked, accepted) = tokio::join!(TcpStream::connect(address), newcomer.accept());
                assert!(asked.is_ok() && accepted.is_ok());
            }
            listening = newcomer;
            let (asked, accepted) = tokio::join!(TcpStream::connect(address), listening.accept());
            assert!(asked.is_ok() && accepted.is_ok());
        }
        drop(listening);
    }
}
