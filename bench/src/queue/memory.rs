//! What the gateway holds while 10,000 prompts of 220 KB wait, or would.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::house::{House, body, send};
use crate::report::Table;

const REQUESTS: u64 = 10_000;
const PROMPT_BYTES: usize = 220 << 10;
/// Until nothing more comes or goes.
const SETTLE: Duration = Duration::from_secs(4);

pub(crate) async fn run() -> anyhow::Result<()> {
    let table = Table::new(
        &format!("{REQUESTS} prompts of {} KB while no engine has room", PROMPT_BYTES >> 10),
        &[
            "total-queue-capacity, MB",
            "waiting",
            "bytes waiting, MB",
            "resident before, MB",
            "resident, MB",
            "all came within, s",
        ],
    )?;
    for capacity in [100_u64 << 20, 1 << 30, 4 << 30] {
        let capacity_text = capacity.to_string();
        let annotations = [
            ("inference.networking.x-k8s.io/queueing", "enabled"),
            ("inference-epp-env.networking.x-k8s.io/total-queue-capacity", capacity_text.as_str()),
            ("inference-epp-env.networking.x-k8s.io/queue-ttl", "30m"),
        ];
        // One engine that computes one request for ever, with others behind it.
        let engine = ["--max-num-seqs", "1", "--prefill-us-per-token", "10000000"];
        let bodies = (8_u64 << 30).to_string();
        let house = House::start(
            1,
            &engine,
            &annotations,
            &["--bodies-bytes-max", &bodies, "--requests-max", "20000"],
        )
        .await?;
        sleep(Duration::from_secs(2)).await;
        let before = house.door.decider.resident_bytes()? as f64 / 1e6;
        let begin = Instant::now();
        let mut clients = JoinSet::new();
        let mut streams = Vec::new();
        for number in 0..REQUESTS {
            let gateway = house.door.gateway;
            clients.spawn(async move { send(gateway, "standard", &body(number, PROMPT_BYTES)).await });
            if clients.len() >= 64
                && let Some(sent) = clients.join_next().await
            {
                streams.extend(sent?.ok());
            }
        }
        while let Some(sent) = clients.join_next().await {
            streams.extend(sent?.ok());
        }
        let came = begin.elapsed();
        sleep(SETTLE).await;
        let waiting = house.metric("inference_extension_flow_control_queue_size").await?;
        let bytes = house.metric("inference_extension_flow_control_queue_bytes").await?;
        table.row(&[
            format!("{:.0}", capacity as f64 / 1e6),
            format!("{waiting:.0}"),
            format!("{:.0}", bytes / 1e6),
            format!("{before:.0}"),
            format!("{:.0}", house.door.decider.resident_bytes()? as f64 / 1e6),
            format!("{:.1}", came.as_secs_f64()),
        ])?;
    }
    Ok(())
}
