//! How much memory a host must set aside before it swaps over a network.

use netswap_net::NetPlanConfig;
use netswap_reserve::ReservePlan;

use crate::scenario::Scenario;

/// Bytes of each of the two buffers of a stream that serves paging: 64 KiB carry the line rate of
/// 1 Gbit/s at 200 us.
pub const STREAM_BYTES: usize = 64 << 10;
/// Bytes of the receive buffer of the untagged stream.
pub const UNTAGGED_RX_BYTES: usize = 16 << 10;
/// Bytes of the send buffer of the untagged stream: it only ever acknowledges.
pub const UNTAGGED_TX_BYTES: usize = 4 << 10;
/// Largest packet of the link, in bytes.
pub const MTU: usize = 1500;

/// The plan of a host that swaps to `areas` areas, a stream each.
pub fn host_plan(scenario: &Scenario, areas: u32) -> ReservePlan {
    let mut plan = ReservePlan::new();
    let config = NetPlanConfig {
        ring: scenario.host.rx_ring,
        tagged_streams: areas,
        window_bytes: STREAM_BYTES as u32,
        mtu: MTU as u32,
        ..NetPlanConfig::default()
    };
    netswap_net::plan::plan(&mut plan, &config);
    let untagged = (UNTAGGED_RX_BYTES + UNTAGGED_TX_BYTES) / netswap_reserve::PAGE_SIZE;
    plan.set_aside(
        "untagged TCP buffers",
        untagged as u32,
        "the one untagged stream: its memory is its own, so it cannot take that of paging",
    );
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_plan_fits_a_mebibyte() {
        let plan = host_plan(&Scenario::default(), 1);
        assert!(plan.frames() <= 256, "{plan}");
    }
}
