//! Memory of idle streams, memory under churn, and what standing by costs.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::client::{self, Shape};
use super::stand::{self, EnvoyConfig};
use super::{ENDPOINTS, spread};
use crate::report::Table;

/// A stream takes two file descriptors of a proxy: this many fit 20,000 with what Pointsman keeps back for others.
const IDLE_STREAMS: usize = 7_500;
const IDLE_ENDPOINTS: usize = 100;
const IDLE_FOR: Duration = Duration::from_secs(10);
const CHURN_FOR: Duration = Duration::from_secs(90);
const CHURN_CLIENTS: usize = 16;

/// Streams that have had their first event and wait for the next.
pub(crate) async fn streams() -> anyhow::Result<()> {
    let (_backends, endpoints) = stand::backends(&[0; ENDPOINTS])?;
    let table = Table::new(
        &format!("{IDLE_STREAMS} streams that stand still"),
        &["proxy", "resident before, MB", "with the streams, MB", "bytes a stream", "after, MB"],
    )?;
    for proxy in [stand::envoy(&endpoints, EnvoyConfig::Plain)?, stand::pointsman(&endpoints)?] {
        let before = proxy.process.resident_bytes()?;
        let shape = Shape::new(1 << 10, "hold");
        let mut held = Vec::with_capacity(IDLE_STREAMS);
        let mut request = shape.bytes();
        for _ in 0..IDLE_STREAMS {
            shape.renumber(&mut request);
            let mut stream = client::connect(proxy.address).await?;
            stream.write_all(&request).await?;
            let mut first = [0; 1024];
            let read = stream.read(&mut first).await?;
            ensure!(
                first[..read].starts_with(b"HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(&first[..read])
            );
            held.push(stream);
        }
        sleep(Duration::from_secs(2)).await;
        let with = proxy.process.resident_bytes()?;
        let count = held.len() as u64;
        drop(held);
        sleep(Duration::from_secs(3)).await;
        let mb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        table.row(&[
            proxy.name.into(),
            mb(before),
            mb(with),
            ((with - before) / count).to_string(),
            mb(proxy.process.resident_bytes()?),
        ])?;
    }
    Ok(())
}

/// Connections and requests that come and go; half of the streams are left in the middle.
pub(crate) async fn churn() -> anyhow::Result<()> {
    let (_backends, endpoints) = stand::backends(&[0; ENDPOINTS])?;
    let proxy = stand::pointsman(&endpoints)?;
    let until = Instant::now() + CHURN_FOR;
    let mut clients = JoinSet::new();
    for number in 0..CHURN_CLIENTS {
        clients.spawn(async move {
            let shapes = [(1 << 10, ""), (220 << 10, ""), (1 << 10, "chunks=20"), (32 << 10, "hold")];
            let shapes = shapes.map(|(bytes, query)| Shape::new(bytes, query));
            let (mut asked, mut buffer) = (0_u64, Vec::new());
            while Instant::now() < until {
                let turn = (number as u64 + asked) as usize;
                let shape = &shapes[turn % shapes.len()];
                let mut request = shape.bytes();
                shape.renumber(&mut request);
                // Left by its client after a moment, wherever it stands.
                let asking = async {
                    let mut stream = client::connect(proxy.address).await?;
                    client::ask(&mut stream, &request, &mut buffer).await
                };
                let _ = tokio::time::timeout(Duration::from_millis(5 + 10 * (turn as u64 % 7)), asking).await;
                asked += 1;
            }
            asked
        });
    }
    let mut samples = Vec::new();
    let begin = Instant::now();
    while Instant::now() < until {
        sleep(Duration::from_secs(1)).await;
        samples.push((begin.elapsed().as_secs_f64(), proxy.process.resident_bytes()? as f64 / 1e6));
    }
    let asked: u64 = clients.join_all().await.iter().sum();
    let (early, late) = samples.split_at(samples.len() / 3);
    let table = Table::new(
        &format!("Churn: {asked} connections in {CHURN_FOR:?}, one request each, many left in the middle"),
        &["part", "resident MB", "slope, MB a minute", "bytes a request"],
    )?;
    for (name, part) in [("the first third", early), ("the rest", late)] {
        let mb_per_s = slope(part);
        table.row(&[
            name.into(),
            spread(&part.iter().map(|(_, mb)| *mb).collect::<Vec<_>>()).1,
            format!("{:.2}", mb_per_s * 60.0),
            format!("{:.0}", mb_per_s * 1e6 * CHURN_FOR.as_secs_f64() / asked as f64),
        ])?;
    }
    Ok(())
}

/// Of the line that lies nearest, by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    above / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}

/// What scraping costs while nobody asks.
pub(crate) async fn idle() -> anyhow::Result<()> {
    let table = Table::new("Standing by", &["endpoints scraped", "cores", "resident MB"])?;
    for count in [ENDPOINTS, IDLE_ENDPOINTS] {
        let (_backends, endpoints) = stand::backends(&vec![0; count])?;
        let proxy = stand::pointsman(&endpoints)?;
        sleep(Duration::from_secs(2)).await;
        let (begin, cpu) = (Instant::now(), proxy.process.cpu()?);
        sleep(IDLE_FOR).await;
        let used = proxy.process.cpu()?.saturating_sub(cpu).as_secs_f64();
        let mb = proxy.process.resident_bytes()? as f64 / 1e6;
        table.row(&[
            count.to_string(),
            format!("{:.3}", used / begin.elapsed().as_secs_f64()),
            format!("{mb:.1}"),
        ])?;
    }
    Ok(())
}
