//! Gauges that are read when somebody asks, not kept: a [`FamilyWriter`] writes them straight into the encoder.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::definitions::{Definition, Kind};

/// Writes families whose samples are computed at scrape time.
pub struct FamilyWriter<'a>(DescriptorEncoder<'a>);

impl<'a> FamilyWriter<'a> {
    /// Wraps the encoder that a [`Collector`](crate::Collector) is given.
    #[must_use]
    pub fn new(encoder: DescriptorEncoder<'a>) -> FamilyWriter<'a> {
        FamilyWriter(encoder)
    }

    /// One family: each sample is its label values, in the definition's order, and its value. A family without
    /// labels is a gauge with one sample.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn family<L: AsRef<str>, const N: usize>(
        &mut self,
        definition: &Definition,
        samples: impl IntoIterator<Item = ([L; N], f64)>,
    ) -> fmt::Result {
        debug_assert_eq!(definition.labels.len(), N, "{}", definition.name);
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let counter = definition.kind == Kind::Counter;
        let metric_type = if counter {
            ConstCounter::new(0.0_f64).metric_type()
        } else {
            ConstGauge::new(0.0_f64).metric_type()
        };
        let mut family =
            self.0.encode_descriptor(definition.base_name(), definition.help, None, metric_type)?;
        if N == 0 {
            let Some((_, value)) = samples.next() else { return Ok(()) };
            return ConstGauge::new(value).encode(family);
        }
        for (values, value) in samples {
            let labels: Vec<(&str, &str)> =
                definition.labels.iter().copied().zip(values.iter().map(AsRef::as_ref)).collect();
            let sample = family.encode_family(&labels)?;
            if counter {
                ConstCounter::new(value).encode(sample)?;
            } else {
                ConstGauge::new(value).encode(sample)?;
            }
        }
        Ok(())
    }
}
