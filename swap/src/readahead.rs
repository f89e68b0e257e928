//! Detection of tasks that read in sequence, and how far ahead to read for them.
//!
//! Each task has a few streams. A miss where a stream ended continues it with a window twice as
//! long; any other miss starts a new stream in place of the one that was used least recently, with
//! nothing read ahead. While a stream is read, touching the marked page of a window starts the next.

/// Streams of a task: code, data and stack, or two arrays.
const STREAMS: usize = 3;
/// The first window of a sequential reader, in pages.
const FIRST_WINDOW: u8 = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The page after the last window.
    next: u32,
    /// Length of the last window in pages; 0 is a stream not used yet.
    window: u8,
}

/// The streams of one task, the most recently used first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streams([Stream; STREAMS]);

impl Streams {
    pub(crate) const NEW: Streams = Streams([Stream { next: 0, window: 0 }; STREAMS]);

    /// A miss on `page`: how many pages to read, itself included, at least 1.
    pub(crate) fn miss(&mut self, page: u32, max: u8) -> u8 {
        let found = self.0.iter().position(|s| s.window > 0 && s.next == page);
        let at = found.unwrap_or(STREAMS - 1);
        self.0[..=at].rotate_right(1);
        let stream = &mut self.0[0];
        let window = match found {
            None => 1,
            Some(_) => {
                stream.window.saturating_mul(2).clamp(FIRST_WINDOW, max.max(FIRST_WINDOW)).min(max)
            }
        };
        stream.window = window.max(1);
        stream.next = page.saturating_add(u32::from(stream.window));
        stream.window
    }

    /// The marked page was touched: the next window, as first page and length.
    pub(crate) fn ahead(&mut self, page: u32, max: u8) -> Option<(u32, u8)> {
        let at =
            self.0.iter().position(|s| page < s.next && s.next - page <= u32::from(s.window))?;
        self.0[..=at].rotate_right(1);
        let stream = &mut self.0[0];
        let first = stream.next;
        stream.window = stream.window.saturating_mul(2).clamp(1, max.max(1));
        stream.next = first.saturating_add(u32::from(stream.window));
        Some((first, stream.window))
    }

    /// The window just given was read only up to `next`.
    pub(crate) fn cut(&mut self, next: u32) {
        self.0[0].next = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_for_a_sequential_reader_and_not_for_a_random_one() {
        let mut streams = Streams::default();
        assert_eq!(streams.miss(100, 16), 1);
        assert_eq!(streams.miss(101, 16), 4);
        assert_eq!(streams.miss(105, 16), 8);
        assert_eq!(streams.miss(113, 16), 16);
        assert_eq!(streams.miss(129, 16), 16);
        for page in [7, 300, 12, 500] {
            assert_eq!(streams.miss(page, 16), 1);
        }
    }

    #[test]
    fn two_interleaved_readers_are_both_seen() {
        let mut streams = Streams::default();
        streams.miss(0, 8);
        streams.miss(1000, 8);
        assert_eq!(streams.miss(1, 8), 4);
        assert_eq!(streams.miss(1001, 8), 4);
        assert_eq!(streams.ahead(3, 8), Some((5, 8)));
        assert_eq!(streams.ahead(1003, 8), Some((1005, 8)));
        assert_eq!(streams.ahead(5000, 8), None);
    }

    #[test]
    fn no_readahead_is_one_page() {
        let mut streams = Streams::default();
        assert_eq!([0, 1, 2, 3].map(|p| streams.miss(p, 1)), [1; 4]);
    }
}
