//! What an allocation may do: the flags of the kernel's `gfp_t` that matter here.

bitflags::bitflags! {
    /// Flags of one allocation, named as in the kernel's `include/linux/gfp_types.h`.
    ///
    /// Two kinds of calls exist. [`PagePool::alloc`](crate::PagePool::alloc) and its like never wait,
    /// whatever the flags. [`PagePool::alloc_wait`](crate::PagePool::alloc_wait) waits until a deadline,
    /// unless a flag says that the caller cannot ([`Gfp::ATOMIC`], [`Gfp::NOWAIT`]) or will not
    /// ([`Gfp::SPECULATIVE`]).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Gfp: u8 {
        /// The caller cannot wait (`GFP_ATOMIC`): it may take half of the headroom below min.
        const ATOMIC = 1 << 0;
        /// The call is entitled to a reserve (`__GFP_MEMALLOC`).
        const MEMALLOC = 1 << 1;
        /// The call is not entitled, whatever the ambient scope says (`__GFP_NOMEMALLOC`).
        const NOMEMALLOC = 1 << 2;
        /// The frame is wanted only if memory is plentiful: the call stops at the low watermark
        /// (readahead and other guesses), and never waits.
        const SPECULATIVE = 1 << 3;
        /// The call does not wait and reclaims nothing itself, but stops at min like one that does
        /// (`GFP_NOWAIT`).
        const NOWAIT = 1 << 4;
        /// Reclaim on behalf of this call may start no I/O (the lack of `__GFP_IO`), and so may not enter
        /// a filesystem either.
        const NOIO = 1 << 5;
        /// Reclaim on behalf of this call may not call into a filesystem (the lack of `__GFP_FS`); other
        /// I/O it may do.
        const NOFS = 1 << 6;
    }
}

impl Gfp {
    /// An ordinary allocation (`GFP_KERNEL`): stops at the min watermark.
    pub const KERNEL: Gfp = Gfp::empty();

    /// Whether a call that is made to wait may.
    #[inline]
    pub fn may_wait(self) -> bool {
        !self.intersects(Gfp::ATOMIC | Gfp::SPECULATIVE | Gfp::NOWAIT)
    }

    /// Whether reclaim on behalf of the call may start I/O.
    #[inline]
    pub fn may_io(self) -> bool {
        !self.contains(Gfp::NOIO)
    }

    /// Whether reclaim on behalf of the call may call into a filesystem: neither [`Gfp::NOFS`] nor
    /// [`Gfp::NOIO`].
    #[inline]
    pub fn may_fs(self) -> bool {
        !self.intersects(Gfp::NOFS | Gfp::NOIO)
    }
}
