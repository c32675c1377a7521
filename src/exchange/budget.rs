//! The retry budget: retries are a share of the traffic, so that they cannot become an outage's fuel.

use std::cell::Cell;

/// Retries allowed per request, on average.
const SHARE: f64 = 0.1;
/// Retries per second that are allowed whatever the traffic.
const FLOOR_PER_S: f64 = 10.0;
/// Unused allowance kept.
const TOKENS_MAX: f64 = 100.0;

/// One shard's budget. Time is an argument.
pub struct Budget {
    tokens: Cell<f64>,
    at_ms: Cell<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            tokens: Cell::new(FLOOR_PER_S),
            at_ms: Cell::new(0),
        }
    }
}

impl Budget {
    /// A request came.
    pub fn earn(&self) {
        self.tokens.set((self.tokens.get() + SHARE).min(TOKENS_MAX));
    }

    /// May one retry be made now?
    pub fn spend(&self, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.at_ms.replace(now_ms));
        let tokens = (self.tokens.get() + passed as f64 * FLOOR_PER_S / 1000.0).min(TOKENS_MAX);
        let granted = tokens >= 1.0;
        self.tokens.set(if granted { tokens - 1.0 } else { tokens });
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_cannot_retry_more_than_its_share() {
        let budget = Budget::default();
        let mut retries = 0;
        // 1,000 requests in one second, each wanting a retry.
        for i in 0..1000 {
            budget.earn();
            retries += u32::from(budget.spend(i));
        }
        assert!((100..=125).contains(&retries), "{retries}");
    }

    #[test]
    fn a_quiet_proxy_may_still_retry() {
        let budget = Budget::default();
        while budget.spend(0) {}
        assert!(!budget.spend(50));
        assert!(budget.spend(150));
    }
}
