//! The operations that are done to a pool and its model.

use netswap_reserve::Gfp;

/// Who makes an allocation or a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Not entitled.
    Nobody,
    /// Inside the scope of a reserve.
    Scope(usize),
    /// With a reserve named on the call.
    Call(usize),
}

/// One step. Indices choose among what there is, modulo its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "a variant is the call of that name, and its numbers the arguments"
)]
pub enum Op {
    Alloc(u8, Who),
    Burst(u8, usize, u8),
    Free(usize),
    FreeBurst(usize, u8),
    Park(usize),
    Unpark(usize),
    Share(usize),
    Clone(usize),
    Unshare(usize),
    Add(usize, u32),
    Connect(usize),
    Disconnect(usize),
    Resize(usize, u32),
    Charge(usize, u32),
    ChargeBytes(usize, usize),
    ChargeObjects(usize, u32),
    Uncharge(usize),
    Reserve(u32, Who),
    /// A page of a reservation, maybe within the scope of a reserve.
    Draw(usize, Option<usize>),
    Split(usize, u32),
    EndReservation(usize),
    SetAside(u32),
    FreeRun(usize),
    Exchange(usize, u8),
}

/// The flags among `bits` that exist.
pub fn gfp(bits: u8) -> Gfp {
    Gfp::from_bits_truncate(bits)
}
