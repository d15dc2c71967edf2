mod oracle;
mod properties;
mod shapes;

use super::*;

/// Everything that can be needed.
const ALL: Need = Need { prompt_bytes_max: 1 << 20, model_required: true, stream_wanted: false };

/// What comes of a body shown in these pieces.
fn scan<'a>(api: Api, need: Need, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Asked, Malformed> {
    let mut scan = BodyScan::new(api, need);
    for piece in pieces {
        scan.push(piece)?;
    }
    scan.finish()?;
    Ok(scan.into_asked())
}

/// How many bytes it takes until it is enough.
fn enough_at(api: Api, need: Need, body: &[u8]) -> Option<usize> {
    let mut scan = BodyScan::new(api, need);
    body.chunks(1).position(|byte| scan.push(byte) == Ok(Progress::Enough)).map(|at| at + 1)
}
