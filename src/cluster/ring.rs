//! The ring of consistent hashing: where keys and instances stand on it.
//!
//! An instance stands at many points, each the hash of `"{address}#{i}"`; a key belongs to the next point
//! clockwise. There is no common table: each instance knows its own points, so that a change of the
//! cluster rebuilds nothing and every shard sees the same ring. (Hashes as in xPyD-proxy 1.8, so that keys
//! stay where they were.)

use sha2::{Digest, Sha256};

/// Where a key stands: the first half of its SHA-256, which orders points just as the whole does.
pub fn place(key: &[u8]) -> u128 {
    let digest = Sha256::digest(key);
    digest[..16]
        .iter()
        .fold(0, |place, byte| place << 8 | u128::from(*byte))
}

/// The points of one instance, in order; at least one.
#[derive(Debug)]
pub struct Points(Box<[u128]>);

impl Points {
    /// The points of this address.
    pub fn of(address: &str, count: u32) -> Points {
        let mut label = format!("{address}#");
        let stem = label.len();
        let mut points: Vec<u128> = (0..count.max(1))
            .map(|i| {
                label.truncate(stem);
                label.push_str(itoa::Buffer::new().format(i));
                place(label.as_bytes())
            })
            .collect();
        points.sort_unstable();
        Points(points.into())
    }

    /// The next one clockwise, strictly behind this place; `None`: only by going round.
    pub fn after(&self, place: u128) -> Option<u128> {
        // Points are spread evenly, so the place itself says about where: a short walk from there touches
        // less memory than a search by halves.
        let points = &*self.0;
        let mut at = (((place >> 64) * points.len() as u128) >> 64) as usize;
        while at > 0 && points[at - 1] > place {
            at -= 1;
        }
        while at < points.len() && points[at] <= place {
            at += 1;
        }
        points.get(at).copied()
    }

    /// The first one of the ring.
    pub fn first(&self) -> u128 {
        self.0.first().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_top_of_the_digest() {
        // SHA-256 of nothing: e3b0c442 98fc1c14 9afbf4c8 996fb924 ...
        assert_eq!(place(b""), 0xe3b0c442_98fc1c14_9afbf4c8_996fb924);
    }

    #[test]
    fn the_next_point_is_strictly_behind() {
        let points = Points::of("10.0.0.1:8100", 160);
        assert_eq!(points.0.len(), 160);
        assert!(points.0.is_sorted());
        let first = points.first();
        assert_eq!(points.after(first - 1), Some(first));
        assert_eq!(points.after(first), Some(points.0[1]));
        assert_eq!(points.after(points.0[159]), None);
        for place in (0..2000).map(|i| place(format!("{i}").as_bytes())) {
            let halves = points.0.partition_point(|point| *point <= place);
            assert_eq!(points.after(place), points.0.get(halves).copied());
        }
        assert!(points.0.contains(&place(b"10.0.0.1:8100#159")));
    }
}
