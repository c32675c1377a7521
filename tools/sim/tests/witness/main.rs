//! The simulator seen from outside, over real sockets. Tests are named by the failure they forbid.

mod client;
mod dummies;
mod encode;
mod faults;
mod handover;
mod http;
mod mooncake;
mod offloading;
mod sglang;
mod store;
mod stream;
mod validation;
