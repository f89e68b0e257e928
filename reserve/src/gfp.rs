//! What an allocation may do: the flags of the kernel's `gfp_t` that matter here.

bitflags::bitflags! {
    /// Flags of one allocation, named as in the kernel's `include/linux/gfp_types.h`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Gfp: u8 {
        /// The caller cannot wait (`GFP_ATOMIC`): it may take half of the headroom below min.
        const ATOMIC = 1 << 0;
        /// The call is entitled to a reserve (`__GFP_MEMALLOC`).
        const MEMALLOC = 1 << 1;
        /// The call is not entitled, whatever the ambient scope says (`__GFP_NOMEMALLOC`).
        const NOMEMALLOC = 1 << 2;
        /// The frame is wanted only if memory is plentiful: the call stops at the low watermark
        /// (readahead and other guesses).
        const SPECULATIVE = 1 << 3;
    }
}

impl Gfp {
    /// An ordinary allocation (`GFP_KERNEL`): stops at the min watermark.
    pub const KERNEL: Gfp = Gfp::empty();
}
