//! What the benchmark programs share: Envoy's external processing on the wire, for the load generator and the
//! empty servers that it is held against.

pub mod ext_proc;
