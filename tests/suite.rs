//! One test binary. Each file is named by the failure it forbids.

mod support;

mod chaos;
mod cli;
mod failures;
mod handshakes;
mod http;
mod matrix;
mod structure;
mod wire;
mod xpyd;
