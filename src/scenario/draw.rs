//! Scenarios drawn at random for the stress harness: the same seed draws the same one on any machine.

use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{FloodSpec, HostSpec, LinkSpec, Scenario, ServerSpec, Store};
use crate::units::{Bytes, Nanos, Share};

const MIB: u64 = 1 << 20;
const MS: u64 = 1_000_000;
/// The most pages that all tasks of a drawn scenario map: keeps a seed at about a second.
const MAPPED_PAGES_MAX: f64 = 16_384.0;

struct Draw(Xoshiro256PlusPlus);

impl Draw {
    /// A number in `low..=high`.
    fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.within(1, n) == 1
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.within(0, choices.len() as u64 - 1) as usize]
    }

    /// Up to `high` parts a million once in `n`, else none.
    fn share(&mut self, n: u64, high: u64) -> Share {
        if self.one_in(n) { Share(self.within(1, high)) } else { Share(0) }
    }
}

impl Scenario {
    /// The scenario of `seed`, and the store it swaps to. RAM is 4 to 64 MiB, small hosts being as
    /// likely as large ones; every fault of link and server is among what may be drawn.
    pub fn draw(seed: u64) -> (Scenario, Store) {
        let mut draw = Draw(Xoshiro256PlusPlus::seed_from_u64(seed));
        let d = &mut draw;
        let store = d.of(&Store::ALL);
        let ram = (4 << d.within(0, 4)) * MIB;
        let ram = if ram < 64 * MIB { ram + d.within(0, 3) * ram / 4 } else { ram };
        let frames = (ram / 4096) as f64;
        // In whole hundredths, so that it prints short.
        let wanted = 110 + 10 * d.within(0, 29);
        let most = ((100.0 * MAPPED_PAGES_MAX / frames) as u64).max(110);
        let overcommit = wanted.min(most) as f64 / 100.0;
        let loss = d.of(&[0, 0, 1_000, 1_000, 3_000, 10_000]);
        // A lossier link than 1 % is promised for the smallest host and one round only.
        let is_lossiest = ram == 4 * MIB && d.one_in(2);
        let host = HostSpec {
            ram: Bytes(ram),
            cpus: d.within(1, 4) as u32,
            tasks_per_cpu: d.within(1, 8) as u32,
            overcommit,
            rounds: if is_lossiest { 1 } else { d.within(1, 3) as u32 },
            dirty_percent: d.of(&[0, 0, 10, 50, 100]),
            rx_ring: d.of(&[32, 64, 64, 96]),
            readahead_pages: d.of(&[0, 4, 8, 16]),
            ..HostSpec::default()
        };
        let link = LinkSpec {
            loss: Share(if is_lossiest { 30_000 } else { loss }),
            latency: Nanos(d.of(&[10_000, 50_000, 100_000, 500_000])),
            jitter: Nanos(d.of(&[0, 0, 0, 20_000, 100_000])),
            duplicate: d.share(3, 10_000),
            reorder: d.share(2, 10_000),
            corrupt: d.share(3, 2_000),
            partition_at: d.one_in(8).then(|| Nanos(d.within(10, 400) * MS)),
            ..LinkSpec::default()
        };
        let flood = FloodSpec {
            percent: d.of(&[0, 10, 20, 30, 40]),
            flows: d.within(1, 48) as u32,
            fragmented: d.share(2, 20_000),
            reader_pages: d.within(8, 64) as u32,
            liveness_bytes: Bytes(d.within(16, 128) << 10),
            ..FloodSpec::default()
        };
        let restarts = if d.one_in(5) { d.within(1, 3) } else { 0 };
        let server = ServerSpec {
            restart_at: (0..restarts).map(|_| Nanos(d.within(10, 600) * MS)).collect(),
            late: d.share(5, 2_000),
            late_by: Nanos(d.of(&[5, 100, 1_500, 8_000]) * MS),
            twice: d.share(5, 5_000),
            garbage: d.share(6, 500),
            busy: d.share(5, 5_000),
            short: d.share(5, 5_000),
            ..ServerSpec::default()
        };
        (Scenario { seed, host, link, flood, server }, store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_scenario_again_and_another_seed_another() {
        assert_eq!(Scenario::draw(3).0, Scenario::draw(3).0);
        assert_ne!(Scenario::draw(3).0, Scenario::draw(4).0);
    }

    #[test]
    fn what_is_drawn_stays_within_what_is_promised() {
        let (mut nfs, mut lossiest) = (0, 0);
        for seed in 0..1000 {
            let (s, store) = Scenario::draw(seed);
            nfs += u32::from(store == Store::Nfs);
            assert!((4 * MIB..=64 * MIB).contains(&s.host.ram.0), "{:?}", s.host.ram);
            assert!(s.host.overcommit > 1.0, "there is pressure");
            assert!(s.host.overcommit.to_string().len() <= 4, "{}", s.host.overcommit);
            if s.link.loss.0 > 10_000 {
                lossiest += 1;
                assert_eq!((s.host.ram.0, s.host.rounds), (4 * MIB, 1));
            }
        }
        assert!((400..600).contains(&nfs));
        assert!(lossiest > 5);
    }
}
