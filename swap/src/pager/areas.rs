//! Areas: taking them into use, and choosing slots.

use netswap_reserve::{Frame, Gfp, Span, Time};

use super::{Hint, Pager, PagerEvent};
use crate::area::{AREAS_MAX, Area, AreaInfo, AreaOptions, AreaState};
use crate::backend::{BackendState, Op, Slot, StoreError, SwapBackend};
use crate::error::AreaError;
use crate::page::{AreaId, Mmu, PageId};
use crate::signature::{Header, bad_pages};
use crate::slots::{CLUSTER, SlotTable};

/// How long a store that had no space is left alone if its policy knows no wait. Picked by eye.
pub(super) const FULL_RETRY: Span = Span::from_secs(1);
/// Attempts to read a header before the area is refused, and the wait in between. Picked by eye.
const CHECKS_MAX: u32 = 4;
const CHECK_RETRY: Span = Span::from_millis(200);

impl<B: SwapBackend> Pager<B> {
    /// Takes an area into use (`swapon`). It is on when [`PagerEvent::AreaOn`] says so: after the
    /// store is ready and, unless it is read-only, its header was found to be that of a swap area.
    ///
    /// # Panics
    /// If there were [`AREAS_MAX`] areas already.
    pub fn add_area(&mut self, now: Time, backend: B, options: AreaOptions) -> AreaId {
        let _ = now;
        assert!(self.areas.len() < AREAS_MAX, "at most {AREAS_MAX} areas");
        let id = AreaId(self.areas.len() as u8);
        let server: String = backend.server().into();
        self.areas.push(Area::new(backend, &server, options));
        id
    }

    /// The backend of an area, for its driver.
    ///
    /// # Panics
    /// If there is no such area.
    pub fn backend_mut(&mut self, area: AreaId) -> &mut B {
        &mut self.area_mut(area).backend
    }

    /// The backend of an area, to be looked at.
    ///
    /// # Panics
    /// If there is no such area.
    pub fn backend(&self, area: AreaId) -> &B {
        &self.area(area).backend
    }

    /// All areas there ever were, in the order they were added.
    pub fn area_ids(&self) -> impl Iterator<Item = AreaId> + use<B> {
        (0..self.areas.len() as u8).map(AreaId)
    }

    /// All areas there ever were.
    pub fn areas(&self) -> impl Iterator<Item = AreaInfo> {
        self.areas.iter().enumerate().map(|(id, area)| AreaInfo {
            id: AreaId(id as u8),
            name: area.name.clone(),
            server: area.server.clone(),
            state: area.state,
            priority: area.options.priority,
            read_only: area.options.read_only,
            slots: area.slots.len(),
            used: area.slots.used(),
            free: area.slots.free(),
            quarantined: area.slots.quarantined(),
            discarding: area.slots.held(),
        })
    }

    /// Releases the quarantine of an area whose backend has proven that no late copy exists any more. To be
    /// called before its completions are taken: those may be loose again.
    pub(super) fn see_fences(&mut self, id: AreaId) {
        let area = self.area_mut(id);
        let fences = area.backend.fences();
        if fences != area.fences {
            area.fences = fences;
            tracing::info!(
                area = &*area.name,
                slots = area.slots.quarantined(),
                "quarantine released"
            );
            self.release_quarantine(id);
        }
    }

    /// Makes the quarantined slots of an area usable. To be called only when no late copy of a write
    /// can reach the store any more. The pager does so by itself when [`SwapBackend::fences`] grows.
    pub fn release_quarantine(&mut self, area: AreaId) {
        let area = self.area_mut(area);
        area.slots.release_quarantine();
        area.quarantine_told = false;
        self.reclaim_may_work();
    }

    /// Areas on their way to be on, and those whose store has failed as a whole.
    pub(super) fn poll_areas(&mut self, now: Time, mmu: &mut impl Mmu) -> bool {
        let mut moved = false;
        for at in 0..self.areas.len() {
            let id = AreaId(at as u8);
            let area = &mut self.areas[at];
            match (area.state, area.backend.state()) {
                (AreaState::Starting, BackendState::Ready { slots }) if area.options.read_only => {
                    area.slots = SlotTable::new(slots);
                    area.state = AreaState::On;
                    self.events.push_back(PagerEvent::AreaOn { area: id });
                }
                (AreaState::Starting, BackendState::Ready { .. }) => {
                    area.state = AreaState::Checking
                }
                (AreaState::Checking, BackendState::Ready { .. }) => {
                    if area.ios > 0 || now < area.check_at {
                        continue;
                    }
                    area.check_at = now + CHECK_RETRY;
                    if !self.read_header(now, id) {
                        continue;
                    }
                }
                (AreaState::Starting | AreaState::Checking, BackendState::Failed(error)) => {
                    self.refuse(id, AreaError::Store(error));
                }
                (AreaState::Starting | AreaState::Checking, BackendState::Stopped) => {
                    self.refuse(id, AreaError::Stopped);
                }
                (_, BackendState::Failed(error)) => {
                    if !self.end_queued(now, mmu, id, error) {
                        continue;
                    }
                }
                _ => continue,
            }
            moved = true;
        }
        moved
    }

    pub(super) fn check_deadline(&self) -> Option<Time> {
        let checking = self.areas.iter().filter(|a| a.state == AreaState::Checking && a.ios == 0);
        checking.map(|area| area.check_at).min()
    }

    fn read_header(&mut self, now: Time, id: AreaId) -> bool {
        let Some(frame) = self.alloc_page(Gfp::KERNEL) else { return false };
        let Some(io) = self.ios.alloc(Op::Read, id, Slot(0)) else { return false };
        let entry = self.ios.get_mut(io);
        entry.header = true;
        entry.count = 1;
        entry.frames.push(frame);
        self.enqueue(io);
        self.submit(now, id);
        true
    }

    pub(super) fn complete_header(&mut self, id: AreaId, frame: &Frame, error: Option<StoreError>) {
        let area = &mut self.areas[usize::from(id.0)];
        if area.state != AreaState::Checking {
            return;
        }
        let BackendState::Ready { slots } = area.backend.state() else { return };
        if let Some(error) = error {
            area.checks += 1;
            if area.checks == CHECKS_MAX {
                self.refuse(id, AreaError::Store(error));
            }
            return;
        }
        let header = match Header::parse(frame.bytes()) {
            Ok(header) => header,
            Err(error) => return self.refuse(id, AreaError::Signature(error)),
        };
        let pages = u64::from(header.last_page) + 1;
        if pages > u64::from(slots) {
            return self.refuse(id, AreaError::TooShort { pages, slots });
        }
        area.slots = SlotTable::new(pages as u32);
        area.slots.mark_unusable(Slot(0));
        for bad in bad_pages(frame.bytes()) {
            area.slots.mark_unusable(Slot(bad));
        }
        area.state = AreaState::On;
        let priority = area.options.priority;
        let at = self.by_priority.partition_point(|a| self.area(*a).options.priority >= priority);
        self.by_priority.insert(at, id);
        self.events.push_back(PagerEvent::AreaOn { area: id });
        self.reclaim_may_work();
    }

    fn refuse(&mut self, id: AreaId, error: AreaError) {
        let area = &mut self.areas[usize::from(id.0)];
        area.state = AreaState::Refused;
        tracing::warn!(area = &*area.name, %error, "area refused");
        self.events.push_back(PagerEvent::AreaRefused { area: id, error });
    }

    /// Slots that pages may get now, over all areas.
    pub(super) fn slot_room(&self, now: Time) -> u32 {
        self.by_priority.iter().map(|id| self.area(*id).room(now)).sum()
    }

    /// A slot for `page`: beside those of its neighbours if it can be, else in the area of the
    /// highest priority that has room. `after` is what the page before it has just got.
    pub(super) fn alloc_slot(
        &mut self,
        now: Time,
        page: PageId,
        after: Option<(AreaId, Slot)>,
    ) -> Option<(AreaId, Slot)> {
        let (region, within) = (page.0 / CLUSTER, page.0 % CLUSTER);
        let hint = self.hints[region as usize];
        let usable =
            |id: &AreaId| self.areas.get(usize::from(id.0)).is_some_and(|a| a.room(now) > 0);
        let hinted = (hint.cluster != u32::MAX && usable(&hint.area)).then_some(hint.area);
        let hinted = hinted.filter(|id| self.area(*id).slots.owns(hint.cluster, region));
        let id = hinted.or_else(|| self.by_priority.iter().copied().find(usable))?;
        let cluster = (id == hint.area).then_some(hint.cluster);
        let after = after.filter(|(area, _)| *area == id).map(|(_, slot)| slot);
        let slot = self.area_mut(id).slots.alloc(region, within, cluster, after)?;
        if self.area(id).slots.owns(slot.0 / CLUSTER, region) {
            self.hints[region as usize] = Hint { cluster: slot.0 / CLUSTER, area: id };
        }
        self.keep_plenty(id);
        Some((id, slot))
    }
}
