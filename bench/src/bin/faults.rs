//! A TCP proxy that breaks what passes through it, byte for byte as a script says. For tests and benchmarks.
//!
//! `faults --to HOST:PORT [--to …] [--rules JSON] [--seed N]` listens once for each target and prints
//! `ready admin=ADDR routes=ADDR,ADDR…`. A script is a JSON list of rules, given at the start or with `PUT /rules` to the
//! admin address, which holds for connections made from then on:
//!
//! ```json
//! [{"way": "up", "at": [0, 900], "does": "reset", "probability": 0.05, "first": "POST", "route": 0}]
//! ```
//!
//! - `way`: `up`, towards the target, or `down`, towards its client. `at`: before which byte of that way, a number or
//!   `[LOW, HIGH]` from which each connection draws its own. `probability` (1 if absent): of a connection to be met.
//! - `first`: only connections whose client begins with these bytes. `route`: only that target, by its place.
//! - `does`: `reset`, both sides; `half_close`, this way ends as if its sender had closed; `blackhole`, nothing more of
//!   this way arrives, not even its end; `{"delay_ms": N}`, once; `{"trickle_ms": N}`, from here on a byte each time.
//!
//! Connection N of route R meets the same faults whenever the seed is the same. `GET /` tells how many connections came
//! and how many faults were met; `DELETE /connections` resets those that are open.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What one read takes at most.
const PASSED_BYTES_MAX: usize = 64 << 10;
const ADMIN_REQUEST_BYTES_MAX: usize = 64 << 10;

#[derive(Parser)]
#[command(about = "A TCP proxy that breaks what passes through it")]
struct Flags {
    /// A target; repeatable.
    #[arg(long = "to", value_name = "HOST:PORT", required = true)]
    targets: Vec<SocketAddr>,
    /// What goes wrong.
    #[arg(long, value_name = "JSON", default_value = "[]")]
    rules: String,
    /// Decides what is drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// One rule of a script.
#[derive(Clone)]
struct Rule {
    way: Way,
    at: (u64, u64),
    does: Fault,
    probability: f64,
    first: Vec<u8>,
    route: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

#[derive(Clone, Copy)]
enum Fault {
    Reset,
    HalfClose,
    Blackhole,
    Delay(Duration),
    Trickle(Duration),
}

/// What all connections share.
struct Proxy {
    seed: u64,
    rules: Mutex<Arc<Vec<Rule>>>,
    connections: AtomicU64,
    met: AtomicU64,
    cut: Mutex<CancellationToken>,
}

/// The faults that one way of a connection will meet, by offset, and how far it is.
struct Ahead {
    faults: Vec<(u64, Fault)>,
    passed_bytes: u64,
    trickle: Option<Duration>,
}

/// The connection is to be reset: a rule says so, or one side has reset it.
struct Reset;

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let proxy = Arc::new(Proxy {
        seed: flags.seed,
        rules: Mutex::new(Arc::new(script(&flags.rules)?)),
        connections: AtomicU64::new(0),
        met: AtomicU64::new(0),
        cut: Mutex::new(CancellationToken::new()),
    });
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&flags, proxy))
}

async fn run(flags: &Flags, proxy: Arc<Proxy>) -> anyhow::Result<()> {
    let tracker = TaskTracker::new();
    let mut routes = Vec::new();
    for (route, &target) in flags.targets.iter().enumerate() {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        routes.push(listener.local_addr()?.to_string());
        tracker.spawn(Arc::clone(&proxy).route(route as u64, listener, target, tracker.clone()));
    }
    let admin = TcpListener::bind("127.0.0.1:0").await?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready admin={} routes={}", admin.local_addr()?, routes.join(","))?;
    stdout.flush()?;
    loop {
        let (stream, _) = admin.accept().await?;
        let proxy = Arc::clone(&proxy);
        // A client of the admin address that goes away harms only itself.
        tracker.spawn(async move { proxy.administer(stream).await.ok() });
    }
}

impl Proxy {
    async fn route(
        self: Arc<Proxy>,
        route: u64,
        listener: TcpListener,
        to: SocketAddr,
        tracker: TaskTracker,
    ) {
        let mut number = 0;
        while let Ok((client, _)) = listener.accept().await {
            number += 1;
            let proxy = Arc::clone(&self);
            // A connection that ends in an error is what this program is for.
            tracker.spawn(async move { proxy.connection(client, to, route, number).await.ok() });
        }
    }

    async fn connection(
        &self,
        client: TcpStream,
        to: SocketAddr,
        route: u64,
        number: u64,
    ) -> anyhow::Result<()> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let (rules, cut) = (Arc::clone(&self.rules.lock()), self.cut.lock().clone());
        client.set_nodelay(true)?;
        let begin =
            if rules.iter().any(|rule| !rule.first.is_empty()) { peek(&client).await? } else { Vec::new() };
        let mut chance = mix(mix(self.seed ^ (route << 48)) ^ number);
        let met: Vec<_> = rules.iter().filter_map(|rule| rule.draw(route, &begin, &mut chance)).collect();
        let target = TcpStream::connect(to).await;
        let target = match target {
            Ok(target) => target,
            // As near to a refused connection as a proxy comes that has accepted it.
            Err(error) => return client.set_zero_linger().and(Err(error)).map_err(Into::into),
        };
        target.set_nodelay(true)?;
        let ((mut from_client, mut to_client), (mut from_target, mut to_target)) =
            (client.into_split(), target.into_split());
        let both = async {
            let up = self.pass(Ahead::new(&met, Way::Up), &mut from_client, &mut to_target);
            let down = self.pass(Ahead::new(&met, Way::Down), &mut from_target, &mut to_client);
            tokio::try_join!(up, down)
        };
        let ended = tokio::select! {
            ended = both => ended,
            () = cut.cancelled() => Err(Reset),
        };
        if let Err(Reset) = ended {
            to_client.as_ref().set_zero_linger()?;
            to_target.as_ref().set_zero_linger()?;
        }
        Ok(())
    }

    /// Passes one way on until it ends.
    async fn pass(
        &self,
        mut ahead: Ahead,
        from: &mut OwnedReadHalf,
        to: &mut OwnedWriteHalf,
    ) -> Result<(), Reset> {
        let mut buffer = vec![0; PASSED_BYTES_MAX];
        loop {
            while let Some(fault) = ahead.due() {
                self.met.fetch_add(1, Ordering::Relaxed);
                match fault {
                    Fault::Reset => return Err(Reset),
                    Fault::HalfClose => return to.shutdown().await.map_err(|_| Reset),
                    Fault::Blackhole => return swallow(from, &mut buffer).await,
                    Fault::Delay(pause) => {
                        // A connection that has nothing to pass yet is not held up: the next byte is.
                        from.readable().await.map_err(|_| Reset)?;
                        sleep(pause).await;
                    }
                    Fault::Trickle(pause) => ahead.trickle = Some(pause),
                }
            }
            let room = ahead.room();
            let read = from.read(&mut buffer[..room]).await.map_err(|_| Reset)?;
            if read == 0 {
                return to.shutdown().await.map_err(|_| Reset);
            }
            if let Some(pause) = ahead.trickle {
                sleep(pause).await;
            }
            to.write_all(&buffer[..read]).await.map_err(|_| Reset)?;
            ahead.passed_bytes += read as u64;
        }
    }

    /// One request to the admin address.
    async fn administer(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        let mut request = Vec::new();
        let (head_bytes, length) = loop {
            anyhow::ensure!(request.len() < ADMIN_REQUEST_BYTES_MAX, "too long");
            anyhow::ensure!(stream.read_buf(&mut request).await? > 0, "gone");
            let Some(end) = memchr::memmem::find(&request, b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&request[..end])?.to_ascii_lowercase();
            let length = head.lines().find_map(|row| row.strip_prefix("content-length:"));
            let length: usize = length.unwrap_or("0").trim().parse()?;
            if request.len() >= end + 4 + length {
                break (end + 4, length);
            }
        };
        let body = std::str::from_utf8(&request[head_bytes..head_bytes + length])?;
        let (status, said) = match request.split(|byte| *byte == b' ').take(2).collect::<Vec<_>>()[..] {
            [b"PUT", b"/rules"] => match script(body) {
                Ok(rules) => {
                    *self.rules.lock() = Arc::new(rules);
                    (200, serde_json::json!({}))
                }
                Err(error) => (400, serde_json::json!({"error": format!("{error:#}")})),
            },
            [b"DELETE", b"/connections"] => {
                std::mem::take(&mut *self.cut.lock()).cancel();
                (200, serde_json::json!({}))
            }
            [b"GET", b"/"] => {
                let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let counts =
                    serde_json::json!({"connections": count(&self.connections), "met": count(&self.met)});
                (200, counts)
            }
            _ => (404, serde_json::json!({"error": "there are PUT /rules, DELETE /connections and GET /"})),
        };
        let said = said.to_string();
        let head =
            format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", said.len());
        Ok(stream.write_all((head + &said).as_bytes()).await?)
    }
}

impl Rule {
    /// Where and how it meets this connection, if it does.
    fn draw(&self, route: u64, begin: &[u8], chance: &mut u64) -> Option<(Way, u64, Fault)> {
        // Both are drawn from each rule, met or not: a rule more changes nothing for those before it.
        let mut next = || {
            *chance = mix(*chance);
            *chance
        };
        let (met, offset) = (next(), next());
        let (low, high) = self.at;
        let at = low + offset % (high - low + 1);
        let meets = (met >> 11) as f64 / (1_u64 << 53) as f64 <= self.probability
            && begin.starts_with(&self.first)
            && self.route.is_none_or(|only| only == route);
        meets.then_some((self.way, at, self.does))
    }
}

impl Ahead {
    fn new(met: &[(Way, u64, Fault)], way: Way) -> Ahead {
        let mut faults: Vec<_> =
            met.iter().filter(|(of, ..)| *of == way).map(|(_, at, fault)| (*at, *fault)).collect();
        // The next is the last.
        faults.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        Ahead { faults, passed_bytes: 0, trickle: None }
    }

    /// The fault whose place is here.
    fn due(&mut self) -> Option<Fault> {
        let (at, _) = self.faults.last()?;
        (*at <= self.passed_bytes).then(|| self.faults.pop().map(|(_, fault)| fault)).flatten()
    }

    /// How many bytes may pass before the next fault.
    fn room(&self) -> usize {
        if self.trickle.is_some() {
            return 1;
        }
        let until = self.faults.last().map_or(u64::MAX, |(at, _)| at - self.passed_bytes);
        usize::try_from(until).unwrap_or(usize::MAX).min(PASSED_BYTES_MAX)
    }
}

/// Takes what comes, so that its sender sees nothing, and never ends in order.
async fn swallow(from: &mut OwnedReadHalf, buffer: &mut [u8]) -> Result<(), Reset> {
    while from.read(buffer).await.map_err(|_| Reset)? > 0 {}
    std::future::pending().await
}

/// The first bytes of a client, which stay where they are.
async fn peek(client: &TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut begin = [0; 16];
    let count = client.peek(&mut begin).await?;
    Ok(begin[..count].to_vec())
}

/// Reads a script.
fn script(text: &str) -> anyhow::Result<Vec<Rule>> {
    let value: serde_json::Value = serde_json::from_str(text).context("a script is JSON")?;
    value.as_array().context("a script is a list of rules")?.iter().map(rule).collect()
}

fn rule(value: &serde_json::Value) -> anyhow::Result<Rule> {
    let way = match value["way"].as_str() {
        Some("up") => Way::Up,
        Some("down") => Way::Down,
        _ => anyhow::bail!("way is up or down: {value}"),
    };
    let at = match (value["at"].as_u64(), value["at"][0].as_u64(), value["at"][1].as_u64()) {
        (Some(at), ..) => (at, at),
        (None, Some(low), Some(high)) if low <= high && high < u64::MAX => (low, high),
        _ => anyhow::bail!("at is a number or [LOW, HIGH]: {value}"),
    };
    let pause = |name: &str| value["does"][name].as_u64().map(Duration::from_millis);
    let does = match (value["does"].as_str(), pause("delay_ms"), pause("trickle_ms")) {
        (Some("reset"), ..) => Fault::Reset,
        (Some("half_close"), ..) => Fault::HalfClose,
        (Some("blackhole"), ..) => Fault::Blackhole,
        (_, Some(pause), _) => Fault::Delay(pause),
        (_, _, Some(pause)) => Fault::Trickle(pause),
        _ => anyhow::bail!("does is reset, half_close, blackhole, delay_ms or trickle_ms: {value}"),
    };
    let first = value["first"].as_str().unwrap_or_default().as_bytes().to_vec();
    let probability = value["probability"].as_f64().unwrap_or(1.0);
    Ok(Rule { way, at, does, probability, first, route: value["route"].as_u64() })
}

/// SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
