//! Counters of the pager.

/// What the pager did since it was made. All monotonic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PagerStats {
    /// Pages read from stores and accepted, file pages and readahead included.
    pub page_ins: u64,
    /// Pages written to stores.
    pub page_outs: u64,
    /// Read requests that succeeded.
    pub read_requests: u64,
    /// Write requests that succeeded.
    pub write_requests: u64,
    /// Faults that had to wait for a read.
    pub major_faults: u64,
    /// Faults on a page that was in memory.
    pub minor_faults: u64,
    /// Write faults that made a clean page writable (they give up its slot).
    pub write_faults: u64,
    /// Faults that were given a page of zeros.
    pub zero_faults: u64,
    /// Faults that had to wait for a frame.
    pub frame_waits: u64,
    /// Faults on a page that was being written; they cost no read.
    pub writeback_waits: u64,
    /// Pages of zeros that were dropped instead of stored.
    pub zero_pages_not_stored: u64,
    /// Pages dropped without a write, since a slot held a copy.
    pub clean_drops: u64,
    /// Pages read ahead.
    pub readahead_pages: u64,
    /// Pages read ahead that were touched.
    pub readahead_used: u64,
    /// Pages read ahead that were dropped or unmapped untouched.
    pub readahead_unused: u64,
    /// Pages whose checksum and generation were right when read back.
    pub verified_pages: u64,
    /// Pages read back that did not match.
    pub checksum_errors: u64,
    /// Reads of a page done again because it did not match or was short.
    pub rereads: u64,
    /// Pages declared damaged.
    pub damaged_pages: u64,
    /// Completions that belong to no outstanding request, or to an earlier use of a slot.
    pub stale_completions: u64,
    /// Requests of which the store said they failed.
    pub store_errors: u64,
    /// Requests submitted again by the retry policy.
    pub retries: u64,
    /// Pages moved to another area after a failed write.
    pub failed_over: u64,
    /// Pages given up by the poison policy.
    pub poisoned_pages: u64,
    /// Slots put into quarantine.
    pub quarantined_slots: u64,
    /// Slots of clean resident pages given up because slots ran short.
    pub slots_given_up: u64,
    /// Dirty pages that reclaim had to skip since no slot was free.
    pub skipped_no_slot: u64,
    /// Frames that reclaim looked at.
    pub scanned: u64,
    /// Calls of direct reclaim.
    pub direct_reclaims: u64,
    /// Faults ended with out-of-swap.
    pub out_of_swap: u64,
    /// Discards that were carried out.
    pub discards: u64,
    /// Slots in them.
    pub discarded_slots: u64,
    /// Discards that failed, or were refused. Nothing depends on them.
    pub discards_failed: u64,
    /// Batches that were taken back before they were submitted, because a page was touched.
    pub writes_taken_back: u64,
}
