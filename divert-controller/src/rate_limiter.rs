//! How fast the API server is written to: a token bucket, as in every Kubernetes client. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Allows so many requests a second, and those of a second at once after a rest.
#[derive(Debug)]
pub(super) struct RateLimiter {
    /// Between two requests.
    interval: Duration,
    /// When all requests so far would have been, one at a time.
    spent_until: Instant,
}

impl RateLimiter {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, spent_until: now }
    }

    /// When the next request may be.
    pub(super) fn free_at(&self) -> Instant {
        self.spent_until.checked_sub(Duration::from_secs(1)).unwrap_or(self.spent_until) + self.interval
    }

    /// Counts requests.
    pub(super) fn take(&mut self, requests: u32, now: Instant) {
        self.spent_until = self.spent_until.max(now) + self.interval * requests;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_at_once_and_then_one_at_a_time() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(10, now);
        let mut at_once = 0;
        while limiter.free_at() <= now {
            limiter.take(1, now);
            at_once += 1;
        }
        assert_eq!(at_once, 10);
        assert_eq!(limiter.free_at(), now + Duration::from_millis(100));
        limiter.take(3, now);
        assert_eq!(
            limiter.free_at(),
            now + Duration::from_millis(400),
            "requests beyond the first are paid later"
        );
        let later = now + Duration::from_secs(60);
        limiter.take(10, later);
        assert!(limiter.free_at() > later, "rest is not saved up for more than a second");
    }
}
