//! Logical units of iSCSI targets, as the table of schemes and the commands see them.

mod list;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use netswap_iscsi::login::Params;
use netswap_iscsi::{
    AuthError, ChapConfig, Entropy, IscsiBackend, IscsiUrl, LoginError, UnmapLimits, WritePolicy,
};
use netswap_net::host::UrlHost;
use netswap_reserve::Span;
use netswap_swap::{StoreError, SwapBackend};
use serde_json::json;

use super::client::{Counters, Durability, Fact, RealClient, StoreFacts, WriteProof};
use super::list::ListOptions;
use super::scheme::{Location, Scheme, UrlProblem};
use super::store::OpenOptions;
use crate::units::Bytes;

pub use list::IscsiListFailure;

/// Most requests that an initiator has outstanding.
const IN_FLIGHT_MAX: usize = 1000;

/// `iscsi://`.
pub fn scheme() -> Scheme {
    Scheme::new(
        "iscsi",
        "iscsi://[user@]host[:port]/target/lun[?target_user=NAME&header_digest=D&data_digest=D&initiator=NAME\
         &password_file=PATH&target_password_file=PATH&write=fua|sync&portals=ADDR,...&discard=on|off]",
        Unit::parse,
    )
    .with_list(
        "iscsi://[user@]host[:port][/target][?target_user=NAME&password_file=PATH&target_password_file=PATH&initiator=NAME]",
        list::listing,
    )
}

/// A logical unit, and what proves this side to its target.
struct Unit {
    url: IscsiUrl,
    chap: Option<ChapConfig>,
    /// What challenges are made of.
    entropy: Entropy,
}

impl Unit {
    /// Reads the secrets, too: they are not to be looked for when pages wait.
    fn parse(text: &str) -> Result<Unit, UrlProblem> {
        let url: IscsiUrl = text.parse()?;
        let chap = url.portal.credentials(|name| std::env::var(name).ok())?;
        Ok(Unit { url, chap, entropy: Entropy::of_system()? })
    }
}

impl Unit {
    /// Whether the unit is there behind each of the portals that are to step in.
    fn other_portals(&self, options: &ListOptions) -> Fact {
        let asked = self.url.portals.iter().map(|at| {
            let mut url = self.url.clone();
            (url.portal.host, url.portal.port) = (UrlHost::Address(at.ip()), at.port());
            (at, list::unit(&url, self.chap.clone(), options).is_some())
        });
        let asked: Vec<_> = asked.collect();
        let in_words = asked.iter().map(|(at, is_there)| match is_there {
            true => format!("{at} has the LUN"),
            false => format!("{at} does not answer, or has no such LUN: `netswap ls iscsi://{at}`"),
        });
        Fact {
            name: "portals",
            text: in_words.collect::<Vec<_>>().join(", "),
            value: asked.iter().map(|(at, there)| json!({ "portal": at, "lun": there })).collect(),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Location for Unit {
    fn host(&self) -> Option<String> {
        Some(self.url.portal.host.to_string())
    }

    fn client(&self, address: IpAddr, options: &OpenOptions) -> Box<dyn RealClient> {
        let config = self.url.config(address, self.chap.clone(), self.entropy.clone());
        let mut config = config.with_all();
        config.merge = options.merge;
        config.in_flight = options.in_flight.min(IN_FLIGHT_MAX);
        // Type 10b, "random" (RFC 7143 section 11.12.5): a session of the same name and number would end this one.
        let [a, b, c, d] = options.nonce.to_be_bytes();
        config.isid = [0x80, a, b, c, 0, d];
        match options.durability {
            Some(Durability::WithWrite) => config.write_policy = WritePolicy::Fua,
            Some(Durability::ByFlush) => config.write_policy = WritePolicy::SyncCache,
            None => {}
        }
        Box::new(IscsiBackend::new(config))
    }

    fn look(&self, within: Span) -> Vec<Fact> {
        let IscsiUrl { portal, target, lun, .. } = &self.url;
        let mut said = vec![Fact {
            name: "target",
            text: format!("{target} at {portal}"),
            value: json!({ "name": target, "portal": portal.to_string() }),
        }];
        let options = ListOptions { within, ..ListOptions::default() };
        if let Some(unit) = list::unit(&self.url, self.chap.clone(), &options) {
            let (vendor, product) = (list::text(&unit.vendor), list::text(&unit.product));
            let kind = list::device(unit.device);
            let block = unit.capacity.map(|capacity| capacity.block_size);
            let blocks = block.map_or(String::new(), |block| format!(", blocks of {block} bytes"));
            said.push(Fact {
                name: "lun",
                text: format!("LUN {lun}, a {kind}, {vendor} {product}{blocks}"),
                value: json!({
                    "lun": lun,
                    "type": kind,
                    "vendor": vendor,
                    "product": product,
                    "block_size": block,
                }),
            });
        }
        if !self.url.portals.is_empty() {
            said.push(self.other_portals(&options));
        }
        said
    }

    fn write_names(&self) -> [&'static str; 2] {
        ["FUA", "SYNCHRONIZE CACHE"]
    }
}

impl RealClient for IscsiBackend {
    fn facts(&self) -> StoreFacts {
        let params = self.params();
        let (burst, first) = (params.max_burst(), params.first_burst());
        let (r2ts, size) = (params.max_outstanding_r2t(), |bytes: u32| Bytes(bytes.into()));
        let text = format!(
            "bursts up to {}, the first {}; {r2ts} R2Ts outstanding; data with commands: {}, R2T before all data: {}",
            size(burst),
            size(first),
            if params.immediate_data() { "yes" } else { "no" },
            if params.initial_r2t() { "yes" } else { "no" },
        );
        let value = json!({
            "max_burst": burst,
            "first_burst": first,
            "outstanding_r2t": r2ts,
            "immediate_data": params.immediate_data(),
            "initial_r2t": params.initial_r2t(),
        });
        let said = vec![Fact { name: "limits", text, value }, digests(&params), discards(self)];
        StoreFacts { said, ..StoreFacts::default() }
    }

    fn counters(&self) -> Counters {
        let stats = self.stats();
        Counters {
            connections: stats.logins,
            resent: stats.reissued,
            joined: stats.joined,
            garbage: stats.garbage,
        }
    }

    fn write_proof(&self) -> WriteProof {
        WriteProof {
            how: "a write of the header was answered, and read back".into(),
            epoch: None,
            restarts: 0,
        }
    }

    /// By the status of a login, and by sense (SPC-4 section 4.5).
    fn advice(&self, error: &StoreError) -> Cow<'static, str> {
        match self.login_error() {
            Some(LoginError::Auth(error)) => return format!("{error}{}", after(error)).into(),
            // It says itself what to do.
            Some(error @ LoginError::NoDigest(_)) => return error.to_string().into(),
            _ => {}
        }
        if let StoreError::Refused { code } | StoreError::Denied { code } = error
            && let Some(advice) = of_status(*code)
        {
            return advice.into();
        }
        let advice = match error {
            StoreError::Refused { code: 0x0005_2500 } => {
                "there is no such LUN, or no disk in it: `netswap ls iscsi://host/target` shows those there are"
            }
            StoreError::Refused { code: 0x1800_0000 } => {
                "RESERVATION CONFLICT: another initiator has reserved the LUN: let it release it, or give each a LUN"
            }
            StoreError::ReadOnly | StoreError::Refused { code: 0x0007_2700 } => {
                "make the LUN writable at the target"
            }
            StoreError::NoSpace => "make room at the target",
            StoreError::BlockSize { .. } => {
                "make a LUN with blocks of 512, 1024, 2048 or 4096 bytes"
            }
            StoreError::Changed { .. } => {
                "see what was put under this LUN: nothing was written to it since; bring the old one back, or open it \
                 anew"
            }
            StoreError::Garbage { .. } => "check that the port is that of the target",
            StoreError::TimedOut => "check that the target is not stopped",
            _ => "see the target's log",
        };
        advice.into()
    }
}

/// What headers and data carry, as the login had it.
fn digests(params: &Params) -> Fact {
    let name = |on: bool| if on { "crc32c" } else { "none" };
    let (header, data) = (name(params.header_digest), name(params.data_digest));
    Fact {
        name: "digests",
        text: format!("of headers: {header}, of data: {data}"),
        value: json!({ "header": header, "data": data }),
    }
}

/// Whether slots that become free can be given back, and are.
fn discards(client: &IscsiBackend) -> Fact {
    let is_used = client.discards().is_some();
    let (text, value) = match client.unmap_limits() {
        Some(limits) => {
            let UnmapLimits { blocks, descriptors, granularity, .. } = limits;
            let used = if is_used { "used" } else { "not used: discard=on in the URL makes it so" };
            (
                format!(
                    "the unit takes UNMAP, at most {blocks} blocks in {descriptors} ranges, in units of {granularity}; \
                     {used}"
                ),
                json!({
                    "unmap": true,
                    "used": is_used,
                    "blocks": blocks,
                    "descriptors": descriptors,
                    "granularity": granularity,
                }),
            )
        }
        None => (
            "the unit takes no UNMAP: what is written keeps its place".into(),
            json!({ "unmap": false, "used": false }),
        ),
    };
    Fact { name: "discard", text, value }
}

/// What to do about a login that was refused with this status (RFC 7143 section 11.13.5).
fn of_status(status: u32) -> Option<&'static str> {
    Some(match status {
        0x0201 => {
            "the target wants another user or password: user@ in the URL, and the password by \
             NETSWAP_CHAP_PASSWORD or password_file="
        }
        0x0202 => {
            "let this initiator in at the target, or act under another name by initiator= in the URL"
        }
        0x0203 | 0x0204 => {
            "there is no such target: check its name, `netswap ls iscsi://host` shows those there are"
        }
        0x0205 => "the target speaks another version of iSCSI",
        0x0200 => {
            "the target does not take what was offered: digests may be it: say none or crc32c by header_digest= and \
             data_digest= in the URL; its log says more"
        }
        0x0206 => "the target takes no more connections: end others, or raise its limit",
        0x0207..=0x02ff => "the target does not take what was offered: see its log",
        _ => return None,
    })
}

/// What to do about it, where it does not say so itself.
fn after(error: AuthError) -> &'static str {
    match error {
        AuthError::WrongSecret => {
            ": check user@ in the URL, and the password in NETSWAP_CHAP_PASSWORD or in the file of password_file="
        }
        AuthError::TargetUnproven | AuthError::TargetName => {
            ": check target_user= in the URL, and its password in NETSWAP_CHAP_TARGET_PASSWORD or in the file of \
             target_password_file="
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_starts_are_two_sessions_and_no_secret_shows() {
        let text =
            "iscsi://alice%topsecretpass@127.0.0.1:3261/iqn.2026-01.test:disk/1?data_digest=crc32c";
        let unit = Unit::parse(text).unwrap();
        assert_eq!(unit.to_string(), "iscsi://127.0.0.1:3261/iqn.2026-01.test:disk/1");
        assert!(!format!("{unit:?}").contains("topsecretpass"));
        let client = unit.client("127.0.0.1".parse().unwrap(), &OpenOptions::default());
        assert!(!client.server().contains("topsecretpass"));
    }
}
