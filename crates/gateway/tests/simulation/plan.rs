//! The world of one history, drawn from its seed before anything runs: who is there, what they will do, and when.

use std::time::Duration;

use crate::draw::Draw;

/// When the last client comes, at the latest.
const ARRIVALS_MS: usize = 2500;
/// The same where more come than there is room for.
const CROWD_MS: usize = 1200;
/// The header that names an InferenceObjective.
pub(crate) const OBJECTIVE: &str = "x-gateway-inference-objective";
/// InferenceObjectives and their priorities.
pub(crate) const OBJECTIVES: [(&str, i64); 3] = [("high", 10), ("usual", 0), (LOW, -10)];
/// Who is refused under saturation where nobody waits.
pub(crate) const LOW: &str = "low";
/// Where connections are few, those that rest make room for others.
pub(crate) const CONNECTIONS_FEW: usize = 5;
/// Endpoints are declared at an address where nobody can listen, so that scrapes (real sockets) fail at once and alike;
/// the port says which server is meant.
pub(crate) const ENDPOINT_HOST: &str = "255.255.255.255";
pub(crate) const ENDPOINT_PORT: u16 = 9000;

/// All that is drawn.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) latency: Duration,
    /// How much of the messages between the gateway and servers the network loses, and the connection with them.
    pub(crate) loss_ratio: f64,
    pub(crate) window_segments: usize,
    pub(crate) servers: Vec<Temper>,
    /// Servers speak HTTP/2 in the clear.
    pub(crate) servers_http2: bool,
    pub(crate) client_hosts: usize,
    pub(crate) clients: Vec<Client>,
    pub(crate) declarations: Vec<(Duration, Declared)>,
    pub(crate) faults: Vec<Fault>,
    /// When the process is told to stop, if that is before all is over.
    pub(crate) stop_at: Option<Duration>,
    pub(crate) drain: Duration,
    pub(crate) limits: gateway::Limits,
    pub(crate) shared: director::Limits,
    /// Limits so low that who asks well may be refused.
    pub(crate) tight: bool,
}

/// How a model server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temper {
    /// Answers every request well, some slowly.
    Sound,
    /// Answers most.
    Flaky,
    /// Answers none.
    Bad,
}

/// A declaration of the pool.
#[derive(Clone, Debug)]
pub(crate) struct Declared {
    pub(crate) pool: &'static str,
    /// Servers, by number.
    pub(crate) endpoints: Vec<usize>,
    /// Block size and capacity, where prefixes matter.
    pub(crate) prefix: Option<(usize, usize)>,
    /// The queue's capacity in bytes and its TTL, where requests wait.
    pub(crate) queueing: Option<(usize, Duration)>,
}

/// Something happens to the network or a server for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    pub(crate) what: What,
    pub(crate) host: Host,
}

/// What happens to a host, or to the link between it and the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Partition,
    /// Only what goes to the host is lost.
    PartitionTo,
    /// Only what comes from the host is lost.
    PartitionFrom,
    Hold,
    Slow,
    Crash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Server(usize),
    Clients(usize),
}

/// One connection of a client, and what it asks over it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) host: usize,
    pub(crate) begins: Duration,
    pub(crate) requests: Vec<Asking>,
    pub(crate) http2: bool,
    /// All requests are sent before the first answer is read.
    pub(crate) pipelined: bool,
    pub(crate) reading: Reading,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Fast,
    /// So many bytes, then a pause.
    Slow(usize, Duration),
    /// Takes nothing and keeps the connection.
    Never,
}

/// One request as its client means it.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    pub(crate) tag: String,
    /// The InferenceObjective that its header names.
    pub(crate) objective: Option<&'static str>,
    pub(crate) path: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) malformed: bool,
    pub(crate) chunked: Option<usize>,
    pub(crate) expects_continue: bool,
    pub(crate) big_head: bool,
    pub(crate) closes: bool,
    pub(crate) pause_before: Duration,
    /// The body goes in so many pieces, with a pause before each.
    pub(crate) pieces: usize,
    pub(crate) pause: Duration,
    /// Rests in the middle of its body for longer than clients may.
    pub(crate) stalls: bool,
    /// Its head goes in two parts.
    pub(crate) splits_head: bool,
    pub(crate) quits: Quit,
}

/// When a client hangs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quit {
    Never,
    BeforeBody,
    MidBody,
    Waiting(Duration),
    MidAnswer(usize),
    /// Closes its own direction after the request: to this gateway, a hang-up.
    HalfClose,
}

impl Plan {
    pub(crate) fn draw(seed: u64) -> Plan {
        let root = Draw::new(seed);
        let mut draw = root.of("world");
        let calm = draw.in_hundred(25);
        // More requests at once than the servers have room for.
        let crowded = root.of("crowd").in_hundred(20);
        let tight = !calm && !crowded && draw.in_hundred(35);
        let servers: Vec<Temper> =
            (0..draw.between(1, 5)).map(|_| if calm { Temper::Sound } else { temper(&mut draw) }).collect();
        let servers = if crowded { servers[..servers.len().min(2)].to_vec() } else { servers };
        let client_hosts = draw.between(1, 3);
        let clients = if crowded { draw.between(36, 46) } else { draw.between(3, 9) };
        let clients = (0..clients).map(|number| client(&root, number, client_hosts, crowded)).collect();
        let stop_at = draw.in_hundred(25).then(|| draw.ms(300, 4000));
        let faults = if calm { Vec::new() } else { faults(&mut draw, servers.len(), client_hosts) };
        let lossy = !calm && draw.in_hundred(15);
        Plan {
            seed,
            latency: draw.ms(0, 30),
            loss_ratio: if lossy { 0.003 } else { 0.0 },
            window_segments: draw.weighted(&[(if crowded { 0 } else { 1 }, 32), (2, 64)]),
            servers_http2: root.of("protocol").in_hundred(20),
            client_hosts,
            clients,
            declarations: declarations(&mut draw, servers.len(), calm, crowded),
            faults,
            stop_at,
            drain: draw.weighted(&[(1, Duration::from_millis(400)), (2, Duration::from_secs(15))]),
            limits: limits(&mut draw, tight),
            shared: shared(&mut draw, tight),
            tight,
            servers,
        }
    }

    /// The same for people: bodies cut short.
    pub(crate) fn without_bodies(mut self) -> Plan {
        self.clients
            .iter_mut()
            .flat_map(|client| &mut client.requests)
            .for_each(|asking| asking.body.truncate(0));
        self
    }

    /// Whether nothing but clients can go wrong.
    pub(crate) fn is_calm(&self) -> bool {
        self.servers.iter().all(|temper| *temper == Temper::Sound)
            && self.faults.is_empty()
            && self.loss_ratio == 0.0
            && !self.tight
            && self.declarations.iter().all(|(_, declared)| !declared.endpoints.is_empty())
    }

    /// Whether requests wait at any time.
    pub(crate) fn queues(&self) -> bool {
        self.declarations.iter().any(|(_, declared)| declared.queueing.is_some())
    }

    /// Whether requests wait at all times.
    pub(crate) fn queues_always(&self) -> bool {
        self.declarations.iter().all(|(_, declared)| declared.queueing.is_some())
    }

    /// Whether something happens between the gateway and servers that these do not know of.
    pub(crate) fn troubles_servers(&self) -> bool {
        self.loss_ratio > 0.0 || self.faults.iter().any(|fault| matches!(fault.host, Host::Server(_)))
    }

    /// Whether something happens between the gateway and these clients.
    pub(crate) fn troubles_clients(&self, host: usize) -> bool {
        self.faults.iter().any(|fault| fault.host == Host::Clients(host) && fault.what != What::Slow)
    }
}

impl Asking {
    /// The head as it goes over the wire.
    pub(crate) fn head(&self) -> String {
        let length = match self.chunked {
            Some(_) => "transfer-encoding: chunked".to_owned(),
            None => format!("content-length: {}", self.body.len()),
        };
        let mut head = format!(
            "POST {} HTTP/1.1\r\nhost: door\r\nx-request-id: {}\r\ncontent-type: application/json\r\n{length}\r\n",
            self.path, self.tag
        );
        if let Some(objective) = self.objective {
            head += &format!("{OBJECTIVE}: {objective}\r\n");
        }
        if self.expects_continue {
            head += "expect: 100-continue\r\n";
        }
        if self.closes {
            head += "connection: close\r\n";
        }
        if self.big_head {
            head += &format!("x-big: {}\r\n", "h".repeat(5000));
        }
        head + "\r\n"
    }
}

fn temper(draw: &mut Draw) -> Temper {
    draw.weighted(&[(5, Temper::Sound), (4, Temper::Flaky), (1, Temper::Bad)])
}

fn client(root: &Draw, number: usize, hosts: usize, crowded: bool) -> Client {
    let mut draw = root.of(&format!("client {number}"));
    let http2 = draw.in_hundred(20);
    let pipelined = !http2 && draw.in_hundred(15);
    let count = draw.weighted(&[(5, 1), (3, 2), (2, 4)]);
    let mut requests: Vec<Asking> =
        (0..count).map(|asked| asking(&mut draw, format!("c{number}r{asked}"), crowded)).collect();
    if pipelined {
        for asked in &mut requests {
            (asked.quits, asked.expects_continue) = (Quit::Never, false);
        }
    }
    let reading = draw.weighted(&[(16, 0), (4, 1), (1, 2)]);
    Client {
        host: draw.below(hosts),
        begins: draw.ms(0, if crowded { CROWD_MS } else { ARRIVALS_MS }),
        requests,
        http2,
        pipelined,
        reading: match reading {
            0 => Reading::Fast,
            1 => Reading::Slow(draw.between(500, 4000), draw.ms(1, 20)),
            _ => Reading::Never,
        },
    }
}

fn asking(draw: &mut Draw, tag: String, crowded: bool) -> Asking {
    let objective = if crowded { draw.weighted(&OBJECTIVES.map(|(name, _)| (1, Some(name)))) } else { None };
    let path = draw.weighted(&[(3, "/v1/chat/completions"), (2, "/v1/completions"), (1, "/other")]);
    let all_bytes = [(12, 100), (4, 3_000), (3, 40_000), (2, 300_000), (1, 1_300_000)];
    let bytes = draw.weighted(if crowded { &all_bytes[..3] } else { &all_bytes });
    let bytes = draw.between(bytes / 2, bytes);
    let streamed = draw.in_hundred(60);
    let malformed = path != "/other" && draw.in_hundred(6);
    let body = body(path, &tag, bytes, streamed, malformed);
    let in_pieces = draw.in_hundred(40);
    let late = draw.ms(0, 1500);
    Asking {
        objective,
        path,
        malformed,
        chunked: draw.in_hundred(30).then(|| draw.between(1, 20_000).max(body.len() / 200)),
        body,
        expects_continue: draw.in_hundred(5),
        big_head: draw.in_hundred(3),
        closes: draw.in_hundred(25),
        pause_before: draw.weighted(&[(3, Duration::ZERO), (2, Duration::from_millis(50)), (1, late)]),
        pieces: if in_pieces { draw.between(2, 6) } else { 1 },
        pause: draw.ms(0, 200),
        stalls: draw.in_hundred(3),
        splits_head: draw.in_hundred(10),
        quits: quit(draw),
        tag,
    }
}

fn quit(draw: &mut Draw) -> Quit {
    match draw.below(100) {
        0..5 => Quit::BeforeBody,
        5..10 => Quit::MidBody,
        10..18 => Quit::Waiting(draw.ms(0, 800)),
        18..26 => Quit::MidAnswer(draw.between(1, 3000)),
        26..29 => Quit::HalfClose,
        _ => Quit::Never,
    }
}

/// A body that names its request from end to end.
fn body(path: &str, tag: &str, bytes: usize, streamed: bool, malformed: bool) -> Vec<u8> {
    let text = filler(tag, bytes);
    let body = match path {
        "/v1/chat/completions" => {
            format!(
                r#"{{"model":"m","stream":{streamed},"messages":[{{"role":"user","content":"{text}"}}]}}"#
            )
        }
        "/v1/completions" => format!(r#"{{"prompt":"{text}","model":"m","stream":{streamed}}}"#),
        _ => text,
    };
    let kept = if malformed { body.len() / 2 } else { body.len() };
    body.into_bytes()[..kept].to_vec()
}

/// Text of about that many bytes in which every few bytes say whose it is.
pub(crate) fn filler(tag: &str, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 32);
    for word in 0.. {
        if text.len() >= bytes {
            break;
        }
        text += &format!("{tag}.{word} ");
    }
    text
}

fn declarations(draw: &mut Draw, servers: usize, calm: bool, crowded: bool) -> Vec<(Duration, Declared)> {
    let all: Vec<usize> = (0..servers).collect();
    let mut draw_queueing = draw.of("queueing");
    let mut queueing = || {
        let (capacity, ttl) = (draw_queueing.between(20_000, 400_000), draw_queueing.ms(50, 3000));
        (crowded && draw_queueing.in_hundred(80)).then_some((capacity, ttl))
    };
    let prefix = |draw: &mut Draw| draw.in_hundred(50).then(|| (draw.between(8, 64), draw.between(4, 400)));
    let first = Declared { pool: "p", endpoints: all.clone(), prefix: prefix(draw), queueing: queueing() };
    let mut declarations = vec![(Duration::ZERO, first)];
    for _ in 0..draw.weighted(&[(3, 0), (2, 2), (1, 6)]) {
        let mut endpoints: Vec<usize> = all.iter().copied().filter(|_| draw.in_hundred(70)).collect();
        if endpoints.is_empty() && (calm || draw.in_hundred(70)) {
            endpoints.clone_from(&all);
        }
        let pool = draw.weighted(&[(6, "p"), (1, "q")]);
        let declared = Declared { pool, endpoints, prefix: prefix(draw), queueing: queueing() };
        declarations.push((draw.ms(100, 4000), declared));
    }
    declarations.sort_by_key(|(at, _)| *at);
    declarations
}

/// At most one for each host: what ends one must not end another.
fn faults(draw: &mut Draw, servers: usize, client_hosts: usize) -> Vec<Fault> {
    let mut faults = Vec::new();
    let hosts = (0..servers).map(Host::Server).chain((0..client_hosts).map(Host::Clients));
    for host in hosts {
        let is_server = matches!(host, Host::Server(_));
        if !draw.in_hundred(if is_server { 35 } else { 12 }) {
            continue;
        }
        let what = draw.weighted(&[
            (2, What::Partition),
            (1, What::PartitionTo),
            (1, What::PartitionFrom),
            (2, What::Hold),
            (2, What::Slow),
            (if is_server { 3 } else { 0 }, What::Crash),
        ]);
        let from = draw.ms(0, 3500);
        faults.push(Fault { from, until: from + draw.ms(20, 3000), what, host });
    }
    faults
}

fn limits(draw: &mut Draw, tight: bool) -> gateway::Limits {
    let mut limits = gateway::Limits {
        connections_max: 64,
        header_bytes_max: 4096,
        header_read: Duration::from_millis(1500),
        body_stall: Duration::from_millis(1200),
        answer_stall: Duration::from_millis(2000),
        idle: Duration::from_millis(2500),
        connect: Duration::from_millis(300),
        first_byte: Duration::from_millis(1200),
        unstreamed: Duration::from_millis(2500),
        stream_idle: Duration::from_millis(1000),
        ..gateway::Limits::default()
    };
    limits.streams_max = draw.weighted(&[(3, 256), (1, 2)]);
    if tight && draw.in_hundred(50) {
        limits.connections_max = draw.between(1, CONNECTIONS_FEW);
    }
    limits
}

fn shared(draw: &mut Draw, tight: bool) -> director::Limits {
    let mut shared = director::Limits { body_bytes_max: 1 << 20, ..director::Limits::default() };
    if tight && draw.in_hundred(50) {
        shared.requests_max = draw.between(1, 3) as u64;
    }
    if tight && draw.in_hundred(50) {
        shared.bodies_bytes_max = draw.between(8_000, 400_000) as u64;
    }
    if draw.in_hundred(20) {
        shared.body_bytes_max = draw.between(1_000, 100_000) as u64;
    } else if draw.in_hundred(30) {
        shared.body_bytes_max = 8 << 20;
    }
    shared
}
