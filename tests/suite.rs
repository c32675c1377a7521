//! One test binary. Each file is named by the failure it forbids.

mod support;

mod cli;
mod failures;
mod handshakes;
mod http;
mod structure;
mod wire;
