//! Looks at what the crate tells through `tracing`, as it is told.

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// A subscriber that calls a closure on each event, and takes no notice of spans.
struct OnEvent<F>(F);

impl<F: Fn(&Event<'_>) + 'static> Subscriber for OnEvent<F> {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        (self.0)(event);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Calls `look` on each event of this thread while `work` runs.
pub(crate) fn watch(look: impl Fn(&Event<'_>) + Send + Sync + 'static, work: impl FnOnce()) {
    tracing::subscriber::with_default(OnEvent(look), work);
}
