//! What a URL may begin with. [`SCHEMES`] is the only place that knows: a store of another kind is a line
//! there, a variant of [`StoreUrl`], and what the compiler asks for then.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use netswap_nfs::{NfsBackend, NfsUrl, WritePolicy};

use super::error::StoreUrlError;
use super::store::OpenOptions;
use crate::world::store::StoreClient;

/// A kind of URL.
#[derive(Debug)]
pub struct Scheme {
    /// What stands before `://`.
    pub name: &'static str,
    /// How a URL of it is written.
    pub form: &'static str,
    parse: fn(&str) -> Result<StoreUrl, StoreUrlError>,
}

/// All there are.
pub static SCHEMES: &[Scheme] = &[Scheme {
    name: "nfs",
    form: "nfs://host[:port]/export/path/file[?nfsport=N&mountport=N&uid=N&gid=N&write=file_sync|unstable]",
    parse: |text| Ok(StoreUrl::Nfs(text.parse()?)),
}];

/// A URL that was understood.
///
/// ```
/// use netswap::real::StoreUrl;
///
/// let url: StoreUrl = "nfs://server/export/area0?write=unstable".parse()?;
/// assert_eq!((url.scheme(), &*url.host()), ("nfs", "server"));
///
/// let error = "nbd://server/disk".parse::<StoreUrl>().unwrap_err();
/// assert!(error.to_string().starts_with("\"nbd\" is no kind of store; known: nfs"));
/// # Ok::<(), netswap::real::StoreUrlError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A file on an NFS server.
    Nfs(NfsUrl),
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<StoreUrl, StoreUrlError> {
        let Some((name, _)) = text.split_once("://") else {
            return Err(StoreUrlError::NoScheme { text: text.into() });
        };
        match SCHEMES.iter().find(|scheme| scheme.name == name) {
            Some(scheme) => (scheme.parse)(text),
            None => Err(StoreUrlError::UnknownScheme { name: name.into() }),
        }
    }
}

impl fmt::Display for StoreUrl {
    /// Without parameters, as a name for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Nfs(url) => url.fmt(f),
        }
    }
}

impl StoreUrl {
    /// What stands before `://`.
    pub fn scheme(&self) -> &'static str {
        match self {
            StoreUrl::Nfs(_) => "nfs",
        }
    }

    /// The server, by name or by address.
    pub fn host(&self) -> String {
        match self {
            StoreUrl::Nfs(url) => url.host.to_string(),
        }
    }

    /// The same store, with writes that last in this way.
    pub fn with_write_policy(&self, write: WritePolicy) -> StoreUrl {
        match self {
            StoreUrl::Nfs(url) => StoreUrl::Nfs(NfsUrl { write, ..url.clone() }),
        }
    }

    /// The client of it, for a host that has this address.
    pub(crate) fn client(&self, address: IpAddr, options: &OpenOptions) -> StoreClient {
        match self {
            StoreUrl::Nfs(url) => {
                let mut config = url.config(address);
                if let Some(portmap) = &mut config.portmap {
                    portmap.set_port(options.portmap);
                }
                config.create_bytes = options.create_bytes;
                config.in_flight = options.in_flight;
                config.merge = options.merge;
                config.machine = options.machine.clone();
                config.first_xid = options.first_xid;
                StoreClient::Nfs(NfsBackend::new(config))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_of_the_table_parses_into_its_own_kind() {
        for scheme in SCHEMES {
            let form = scheme.form.split('[').next().unwrap();
            let url: StoreUrl = format!("{form}/export/file").parse().unwrap();
            assert_eq!(url.scheme(), scheme.name);
        }
    }

    #[test]
    fn what_is_no_url_is_told_how_to_be_written() {
        for text in ["", "area0", "iscsi://h/iqn/1", "NFS://h/e/f"] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains("nfs://host"), "{text}: {error}");
        }
        let error = "nfs://h/e/f?rsize=1".parse::<StoreUrl>().unwrap_err().to_string();
        assert!(error.contains("known: version"), "{error}");
    }
}
