//! Envoy's gRPC access log, `envoy.service.accesslog.v3.AccessLogService`: how requests went whose ext_proc stream ended
//! before their answer. Of an entry only what ends a request is read.

use std::pin::pin;

use bytes::Bytes;
use director::{Exchange, Reason};
use ext_proc::message::Metadata;
use ext_proc::{NAMESPACE, SERVED};
use grpc::{Broken, Call, Code, Status};
use http::StatusCode;
use protobuf::{Fields, Malformed};
use tokio_util::sync::CancellationToken;

use crate::parked::Parked;
use crate::process::NUMBER;

/// The method's path.
pub(crate) const PATH: &str = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";

/// The name of the log that is ours, where Envoy keeps several (ext-proc.md).
const LOG_NAME: &[u8] = b"pointsman";

/// What an entry says of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Our number for it, from the metadata that we gave.
    number: Option<u64>,
    /// Who served it.
    served: Option<String>,
    /// The status that the client got; 0 where it got none.
    status: u16,
    /// Bytes of the answer's body.
    answer_bytes: u64,
}

/// Reads a log to its end. While it is open, requests wait for their entries. One of another name is read and says
/// nothing. Envoy never ends it: we do when the picker `drains` and nobody waits for an entry; Envoy opens another, where
/// there is somebody.
pub(crate) async fn serve(parked: &Parked, drains: &CancellationToken, mut call: Call) {
    let mut open = None;
    let drained = async {
        drains.cancelled().await;
        parked.at_rest().await;
    };
    let mut drained = pin!(drained);
    let status = loop {
        let next = tokio::select! {
            next = call.next() => next,
            () = &mut drained => break Status::ok(),
        };
        let message = match next {
            Ok(Some(message)) => message,
            Ok(None) => break Status::ok(),
            Err(Broken::Http2(_)) => return,
            Err(broken) => break Status::new(Code::InvalidArgument, broken.to_string()),
        };
        let read = is_of_our_log(&message).and_then(|ours| {
            // The first message says whose log it is.
            if open.is_none() && ours {
                open = Some(parked.open_log());
            }
            if open.is_none() {
                return Ok(());
            }
            for_each_entry(&message, |entry| {
                if let Some(number) = entry.number {
                    parked.tell(number, entry);
                }
            })
        });
        if let Err(malformed) = read {
            break Status::new(Code::InvalidArgument, malformed.to_string());
        }
    };
    drop(open);
    call.finish(&status);
}

/// Whether a message names our log.
fn is_of_our_log(message: &Bytes) -> Result<bool, Malformed> {
    const IDENTIFIER: u32 = 1;
    const NAME: u32 = 2;
    let mut ours = false;
    each(message, IDENTIFIER, |identifier| {
        each(identifier, NAME, |name| {
            ours = name == LOG_NAME;
            Ok(())
        })
    })?;
    Ok(ours)
}

fn for_each_entry(message: &Bytes, mut take: impl FnMut(Entry)) -> Result<(), Malformed> {
    const HTTP_LOGS: u32 = 2;
    const LOG_ENTRY: u32 = 1;
    each(message, HTTP_LOGS, |entries| {
        each(entries, LOG_ENTRY, |entry| {
            take(Entry::read(message, entry)?);
            Ok(())
        })
    })
}

impl Entry {
    /// Ends the request that this is about.
    pub(crate) fn end(&self, mut exchange: Exchange) {
        if let Some(served) = &self.served {
            exchange.served_by(served);
        }
        let reason = match StatusCode::from_u16(self.status) {
            Ok(status) => {
                exchange.answer(status, None);
                exchange.answer_length(self.answer_bytes);
                Reason::of_answer(status)
            }
            Err(_) => Reason::ClientGone,
        };
        exchange.end(reason);
    }

    fn read(message: &Bytes, entry: &[u8]) -> Result<Entry, Malformed> {
        const COMMON_PROPERTIES: u32 = 1;
        const METADATA: u32 = 17;
        const RESPONSE: u32 = 4;
        const RESPONSE_CODE: u32 = 1;
        const RESPONSE_BODY_BYTES: u32 = 3;
        const UINT32_VALUE: u32 = 1;
        let mut read = Entry::default();
        each(entry, COMMON_PROPERTIES, |common| {
            each(common, METADATA, |metadata| read.metadata(&Metadata::of(message.slice_ref(metadata))))
        })?;
        let mut fields = Fields::of(entry);
        while let Some((field, value)) = fields.read()? {
            if field != RESPONSE {
                continue;
            }
            let mut response = Fields::of(value.bytes(field)?);
            while let Some((field, value)) = response.read()? {
                match field {
                    RESPONSE_CODE => {
                        let mut code = Fields::of(value.bytes(field)?);
                        while let Some((field, value)) = code.read()? {
                            if field == UINT32_VALUE {
                                read.status = u16::try_from(value.varint(field)?).unwrap_or(0);
                            }
                        }
                    }
                    RESPONSE_BODY_BYTES => read.answer_bytes = value.varint(field)?,
                    _ => {}
                }
            }
        }
        Ok(read)
    }

    fn metadata(&mut self, metadata: &Metadata) -> Result<(), Malformed> {
        if let Some(number) = metadata.value(NAMESPACE, NUMBER)? {
            number.for_each_string(|text| {
                self.number = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            })?;
        }
        if let Some(served) = metadata.value(NAMESPACE, SERVED)? {
            served.for_each_string(|text| self.served = str::from_utf8(text).ok().map(str::to_owned))?;
        }
        Ok(())
    }
}

/// Every message under `field`.
fn each(
    message: &[u8],
    field: u32,
    mut take: impl FnMut(&[u8]) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut fields = Fields::of(message);
    while let Some((number, value)) = fields.read()? {
        if number == field {
            take(value.bytes(number)?)?;
        }
    }
    Ok(())
}
