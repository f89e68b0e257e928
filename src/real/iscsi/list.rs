//! The targets of a portal, or the logical units of a target, listed over a socket of the kernel.

use netswap_iscsi::{
    ChapConfig, DiscoveryError, DiscoveryEvent, Entropy, IscsiDiscovery, IscsiListUrl, IscsiUrl,
    ListedUnit, LoginError,
};
use netswap_net::kernel::{HostAddrs, MemoryLock, ProtectConfig};
use serde_json::json;

use super::{after, of_status};
use crate::real::list::{Entry, ListFailure, ListOptions, Listing, bad_url, printable};
use crate::real::pump::Pump;
use crate::real::scheme::UrlProblem;
use crate::real::store::OpenOptions;
use crate::units::Bytes;

/// Why targets or units were not listed.
#[derive(Debug, thiserror::Error)]
#[error("{server}: {error}{}", hint(.error))]
pub struct IscsiListFailure {
    /// The portal or the target.
    pub server: String,
    /// What became of it.
    pub error: DiscoveryError,
}

impl IscsiListFailure {
    /// Whether nobody answered, as opposed to a target that says no.
    pub fn is_unreachable(&self) -> bool {
        self.error == DiscoveryError::TimedOut
    }
}

fn hint(error: &DiscoveryError) -> String {
    match error {
        DiscoveryError::Login(LoginError::Auth(error)) => after(*error).into(),
        DiscoveryError::Login(LoginError::Refused(status)) => {
            of_status(u32::from(*status)).map_or(String::new(), |advice| format!(": {advice}"))
        }
        DiscoveryError::TimedOut => {
            ": it took the connection: check that the port is that of a portal, and that the target is not stopped".into()
        }
        DiscoveryError::Disconnected(_) => {
            ": check that the port is that of a portal; the target's log may say why".into()
        }
        DiscoveryError::Garbage { .. } => ": check that the port is that of a portal".into(),
        _ => String::new(),
    }
}

/// What was found.
enum Found {
    /// A target, with one of its portals and that one's group if it names any.
    Target(String, Option<(String, Option<u16>)>),
    /// A logical unit.
    Unit(ListedUnit),
}

/// Lists what `text` names.
pub(super) fn listing(text: &str, options: &ListOptions) -> Result<Listing, ListFailure> {
    let wrong = |source: UrlProblem| bad_url("iscsi", source);
    let url: IscsiListUrl = text.parse().map_err(|error| bad_url("iscsi", error))?;
    let chap = url.portal.credentials(|name| std::env::var(name).ok());
    let chap = chap.map_err(|error| wrong(error.into()))?;
    let columns: &'static [&'static str] = match url.target {
        None => &["target", "portal", "group"],
        Some(_) => &["lun", "type", "vendor", "product", "block", "size"],
    };
    let entries = find(&url, chap, options)?.into_iter().map(|found| match found {
        Found::Target(name, portal) => of_target(&name, portal),
        Found::Unit(unit) => of_unit(&unit),
    });
    Ok(Listing { columns, entries: entries.collect() })
}

/// What a target says of one of its units, if it can be asked.
pub(super) fn unit(
    url: &IscsiUrl,
    chap: Option<ChapConfig>,
    options: &ListOptions,
) -> Option<ListedUnit> {
    let list = IscsiListUrl { portal: url.portal.clone(), target: Some(url.target.clone()) };
    find(&list, chap, options).ok()?.into_iter().find_map(|found| match found {
        Found::Unit(unit) if unit.lun == url.lun => Some(unit),
        _ => None,
    })
}

fn find(
    url: &IscsiListUrl,
    chap: Option<ChapConfig>,
    options: &ListOptions,
) -> Result<Vec<Found>, ListFailure> {
    let entropy = Entropy::of_system().map_err(|error| bad_url("iscsi", error))?;
    let addrs = HostAddrs::resolve(&url.portal.host.to_string(), 0)?;
    let mut config = url.config(addrs.first().ip(), chap, entropy);
    config.give_up_after = options.within;
    // Not the session of another listing.
    let [a, b, c, d] = OpenOptions::default().nonce.to_be_bytes();
    config.isid = [0x80, a, b, c, 0xff, d];
    let protect =
        ProtectConfig { memory_lock: MemoryLock::Never, io_flusher: false, socket_memory: 0 };
    let mut pump = Pump::new(Some(addrs), &protect)?;
    let mut discovery = IscsiDiscovery::new(config, pump.now());
    let mut found = Vec::new();
    let failed = |error| ListFailure::from(IscsiListFailure { server: url.to_string(), error });
    loop {
        // It has a deadline of its own, and ends by it.
        pump.turn(None, &mut discovery)?;
        let mut taken = false;
        while let Some(event) = discovery.poll_event() {
            taken = true;
            match event {
                // Its portals follow, unless it is where it was asked for.
                DiscoveryEvent::Target { name } => {
                    found.push(Found::Target(printable(name.as_bytes()), None));
                }
                DiscoveryEvent::Portal { address, group } => {
                    let portal = Some((printable(address.as_bytes()), group));
                    match found.last_mut() {
                        Some(Found::Target(_, first @ None)) => *first = portal,
                        Some(Found::Target(name, _)) => {
                            let name = name.clone();
                            found.push(Found::Target(name, portal));
                        }
                        _ => {}
                    }
                }
                DiscoveryEvent::Unit(unit) => found.push(Found::Unit(unit)),
                DiscoveryEvent::End(Ok(())) => return Ok(found),
                DiscoveryEvent::End(Err(error)) => {
                    let is_silent =
                        matches!(error, DiscoveryError::Disconnected(_) | DiscoveryError::TimedOut);
                    if is_silent && pump.stats().conns.connects == 0 {
                        return Err(ListFailure::Unreachable { server: url.to_string() });
                    }
                    return Err(failed(error));
                }
            }
            if found.len() as u64 > options.entries_max {
                let max = usize::try_from(options.entries_max).unwrap_or(usize::MAX);
                return Err(failed(DiscoveryError::TooMany { what: "entries", max }));
            }
        }
        if taken {
            pump.touch();
        }
    }
}

fn of_target(name: &str, portal: Option<(String, Option<u16>)>) -> Entry {
    let (address, group) = portal.unzip();
    let group = group.flatten();
    let cell = |text: Option<String>| text.unwrap_or_else(|| "?".into());
    Entry {
        cells: vec![name.into(), cell(address.clone()), cell(group.map(|group| group.to_string()))],
        value: json!({ "target": name, "portal": address, "group": group }),
    }
}

/// Names of the peripheral device types (SPC-4 section 6.4.2) that a target may show.
pub(super) fn device(device: u8) -> String {
    match device {
        0 => "disk".into(),
        1 => "tape".into(),
        5 => "CD".into(),
        8 => "changer".into(),
        0x0c => "controller".into(),
        other => format!("type {other:#04x}"),
    }
}

/// Text of INQUIRY.
pub(super) fn text(bytes: &[u8]) -> String {
    printable(bytes).trim().to_string()
}

fn of_unit(unit: &ListedUnit) -> Entry {
    let (vendor, product) = (text(&unit.vendor), text(&unit.product));
    let bytes = unit.capacity.map(|of| of.blocks.saturating_mul(u64::from(of.block_size)));
    let block = unit.capacity.map(|capacity| capacity.block_size);
    let kind = device(unit.device);
    Entry {
        value: json!({
            "lun": unit.lun,
            "type": kind,
            "vendor": vendor,
            "product": product,
            "block_size": block,
            "size": bytes,
        }),
        cells: vec![
            unit.lun.to_string(),
            kind,
            vendor,
            product,
            block.map_or("?".into(), |block| block.to_string()),
            bytes.map_or("?".into(), |bytes| Bytes(bytes).to_string()),
        ],
    }
}
