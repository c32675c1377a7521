//! One binary for all tests of pdload.

mod cli;
mod failures;
mod loops;
mod parser;
mod server;
