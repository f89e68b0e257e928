//! What the fuzz targets of this crate do with any bytes, and what the everyday tests do with the seeds of
//! those targets.
//!
//! An input is some flags and a list of operations: a byte that says which, and its operands. Bytes that come
//! from a peer may be anything; the rest is done as a driver would. What must hold, for every input:
//!
//! - no panic; whoever takes bytes takes some, or none for good; a deadline that has come passes: no endless loop;
//! - the initiator gives every request back exactly once, with its pages, at the latest when it is shut down;
//! - nobody who does not know the secret gets through a login, and nobody agrees to what was not on offer;
//! - what the target sends is whole PDUs, each within its bound, and not many more than it was asked for;
//! - a listing ends once, and lists no more than its bounds say;
//! - what can be read can be written, and reads the same.
//!
//! Allocations are bounded by the fuzzer's own limit (`-malloc_limit_mb`).
//!
//! - `pdu`: cutting a stream into PDUs, and sealing them with digests;
//! - `wire`: an initiator's session of any kind, and an honest target whose answers are tampered with;
//! - `decode`, `login`, `initiator`, `target`: what the inputs mean.

#![allow(dead_code, unreachable_pub, unused_imports)]

#[path = "../../../fuzz/shared.rs"]
pub mod shared;

mod decode;
mod initiator;
mod login;
pub mod pdu;
mod target;
mod wire;

use netswap_iscsi::{
    ChapConfig, Credentials, Digest, Entropy, InitiatorConfig, IscsiTarget, TargetConfig,
    UnitOptions,
};
use netswap_reserve::{PagePool, PoolConfig};
use netswap_swap::MemDisk;

pub use decode::decode;
pub use initiator::{discovery, discovery_config, initiator};
pub use login::login;
pub use target::{target, units};

pub const IQN: &str = "iqn.2026-01.test:disk";
const INITIATOR: &str = "iqn.2026-01.test:initiator";
const SLOTS: u64 = 16;

/// Credentials for one direction, or for both; `known` is whether they are those of [`credentials`] elsewhere.
fn credentials(mutual: bool, known: bool) -> ChapConfig {
    let secret = |secret: &[u8]| if known { secret.to_vec() } else { [secret, b"?"].concat() };
    let target = Credentials::new("targ", &secret(b"targetpass34")).unwrap();
    ChapConfig {
        initiator: Credentials::new("alice", &secret(b"secretpass12")).unwrap(),
        target: mutual.then_some(target),
    }
}

/// One of three policies.
fn digest(flags: u8) -> Digest {
    [Digest::None, Digest::Prefer, Digest::Crc32c][usize::from(flags % 3)]
}

/// An initiator set up by three bytes: what to prove, digests and policies, sizes.
pub fn initiator_config([chap, policy, size]: [u8; 3]) -> InitiatorConfig {
    let mut config = InitiatorConfig::new("10.0.0.2:3260".parse().unwrap(), IQN, 0);
    config.initiator = INITIATOR.into();
    config.in_flight = 4;
    config.chap = (chap & 1 > 0).then(|| credentials(chap & 2 > 0, true));
    config.header_digest = digest(policy & 3);
    config.data_digest = digest((policy >> 2) & 3);
    if policy & 16 > 0 {
        config.write_policy = "sync".parse().unwrap();
    }
    config.immediate_data = policy & 32 == 0;
    config.initial_r2t = policy & 64 > 0;
    config.recv_segment = [262_144, 8192, 4096, 512][usize::from(size & 3)];
    config.first_burst = [262_144, 4096, 512][usize::from((size >> 2) % 3)];
    config.max_burst = [1 << 20, 8192, 4096][usize::from((size >> 4) % 3)];
    config.outstanding_r2t = [8, 1][usize::from(size >> 7)];
    if policy & 128 == 0 {
        return config;
    }
    InitiatorConfig { discard: chap & 128 > 0, ..config.with_all() }
}

/// The target for it: it takes the same three bytes, and knows the secrets unless bit 2 of the first is set.
pub fn target_config([chap, policy, size]: [u8; 3]) -> TargetConfig {
    let mut config = TargetConfig::new(IQN);
    config.queue_depth = 4;
    config.transfer_max = 32_768;
    config.max_connections = 1;
    config.chap = (chap & 1 > 0).then(|| credentials(true, chap & 4 == 0));
    config.entropy = Entropy::new([7; 32]);
    // What one side must have, the other does.
    let both = |flags: u8| if flags == 0 { Digest::None } else { Digest::Prefer };
    config.keys.header_digest = both(policy & 3);
    config.keys.data_digest = both((policy >> 2) & 3);
    config.keys.recv_segment = [65_536, 4096][usize::from(size & 1)];
    config.keys.text_chunk = [8192, 40][usize::from((chap >> 3) & 1)];
    config.keys.extra_rounds = (chap >> 4) & 1;
    config.status_with_data = chap & 32 == 0;
    config.sense = [
        netswap_iscsi::SenseForm::Fixed,
        netswap_iscsi::SenseForm::Descriptor,
        netswap_iscsi::SenseForm::Empty,
    ][usize::from((chap >> 6) % 3)];
    config.portals = vec!["10.0.0.2:3260,1".into(), "[::1]:3260,2".into()];
    config
}

pub fn new_target(config: TargetConfig) -> IscsiTarget<MemDisk> {
    let pool = PagePool::new(PoolConfig::new(config.frames() + 64));
    let mut target = IscsiTarget::new(config, pool).unwrap();
    let options = UnitOptions { thin: true, ..UnitOptions::default() };
    target.add_unit(0, MemDisk::new(SLOTS * 4096), options).unwrap();
    target.add_lun(300, MemDisk::new(SLOTS * 4096), 4096, true).unwrap();
    target
}
