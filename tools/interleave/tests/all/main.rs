//! The production sources with loom's atomics, and one file of tests for each kind of shared state.

mod breaker;
mod load;
mod met;
mod metrics_cells;
mod published;

use pdrelay::{config, metrics, net};

/// The copy of a source that `build.rs` made.
macro_rules! source {
    ($file:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $file));
    };
}

// What the tests do not use is used in production.
#[allow(dead_code)]
mod shared {
    source!("shared.rs");
}

// What the tests do not use is used in production.
#[allow(dead_code)]
mod cluster {
    pub mod breaker {
        source!("breaker.rs");
    }
    pub mod load {
        source!("load.rs");
    }
    pub mod models {
        source!("models.rs");
    }
    /// Nothing of it is shared while it changes.
    pub use pdrelay::cluster::ring;
    source!("cluster.rs");

    /// Instances as a cluster would make them. What loom does not watch is made once, outside of it: the
    /// stacks of its threads are small.
    pub fn instances<const N: usize>() -> [Arc<Instance>; N] {
        let (config, metrics) = OUTSIDE.get().expect("every_order has made it");
        std::array::from_fn(|index| {
            let one = &config.instances[0];
            Arc::new(Instance::new(index, one, &config.circuit_breaker, metrics))
        })
    }

    pub static OUTSIDE: std::sync::OnceLock<(Config, Arc<Metrics>)> = std::sync::OnceLock::new();

    pub fn outside() -> (Config, Arc<Metrics>) {
        let known = crate::config::Known {
            handshakes: &["aggregated"],
            policies: &["least_load"],
        };
        let config = crate::config::from_str("aggregated: ['10.0.0.1:1']", "x", &known);
        (config.expect("a good configuration"), Metrics::new(1))
    }
}

#[allow(dead_code)]
mod exchange {
    use crate::cluster::Instance;
    use std::cell::RefCell;
    use std::collections::HashMap;
    source!("met.rs");
}

#[allow(dead_code)]
mod cells {
    /// In place of the real table, whose cells would not fit on the stacks of loom's threads.
    pub mod table {
        macro_rules! one_cell {
            ($($name:ident)*) => {$(
                #[derive(Debug, Clone, Copy)]
                pub struct $name;

                impl $name {
                    pub const CELLS: usize = 1;

                    pub fn cell(self) -> usize {
                        0
                    }
                }
            )*};
        }
        one_cell!(Counter Gauge Histogram InstanceCounter InstanceHistogram);
    }
    pub mod cell {
        source!("cell.rs");
    }
    pub mod shard {
        source!("shard.rs");
    }

    // Production gives these only to its own `metrics` module; here that is this one.
    use std::sync::Arc;

    use crossbeam_utils::CachePadded;

    #[derive(Clone)]
    pub struct Cells(Arc<CachePadded<shard::WriterCells>>);

    impl Cells {
        pub fn new() -> Cells {
            Cells(Arc::new(CachePadded::new(shard::WriterCells::new())))
        }

        /// The right to write them, or `None` while another has it.
        pub fn take(&self) -> Option<shard::ShardMetrics> {
            let take = || shard::ShardMetrics::take(0, &self.0);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(take)).ok()
        }

        pub fn count(&self) -> u64 {
            self.0.counters[table::Counter.cell()].get()
        }
    }
}

/// Runs it under every interleaving with at most so many switches away from a thread that could go on.
/// `None`: with any number.
fn every_order(preemptions: Option<usize>, test: impl Fn() + Sync + Send + 'static) {
    cluster::OUTSIDE.get_or_init(cluster::outside);
    let mut loom = loom::model::Builder::new();
    loom.preemption_bound = preemptions;
    loom.check(test);
}
