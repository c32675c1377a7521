//! Nothing but tests: pdrelay's shared counters, run under loom's scheduler.
//!
//! What runs is the production source. `build.rs` copies the files that it lists and puts loom's atomics
//! and mutex in the place of the standard library's; nothing else changes, and nothing in `src/` knows of
//! it. Loom then runs each test once for every order in which its threads can take their steps, and with
//! every value that a relaxed load may see.
//!
//! **To extend:** a file with new shared state is a line in `build.rs` and a file under `tests/all`.
