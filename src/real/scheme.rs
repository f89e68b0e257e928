//! What a URL may begin with. [`SchemeTable::builtin`] is the one place that knows the stores there are; an
//! embedder adds its own to a table of its own ([`SchemeTable::register`]).
//!
//! A table is a value that is handed to whoever reads a URL: there is no global one, so two parts of a
//! program cannot disturb each other's.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use netswap_reserve::Span;

use super::client::{Durability, Fact, RealClient};
use super::error::StoreUrlError;
use super::list::{ListFailure, ListOptions, Listing};
use super::store::OpenOptions;
use super::{iscsi, nfs};

/// Why a URL of a scheme cannot be used; its text says what to write instead, and has no secret in it.
pub type UrlProblem = Box<dyn Error + Send + Sync>;

type Parse = dyn Fn(&str) -> Result<Arc<dyn Location>, UrlProblem> + Send + Sync;
type List = dyn Fn(&str, &ListOptions) -> Result<Listing, ListFailure> + Send + Sync;

/// Where a store is: what a URL was read into.
///
/// [`Display`](fmt::Display) is its name for messages: without parameters, and without secrets.
pub trait Location: fmt::Display + fmt::Debug + Send + Sync {
    /// The host that is looked up, by name or by address; `None` if the client needs no connection.
    fn host(&self) -> Option<String>;

    /// A client of it, which connects to this address: the host's, or an unspecified one without a host.
    fn client(&self, address: IpAddr, options: &OpenOptions) -> Box<dyn RealClient>;

    /// Whether a client can make the store, and give it its length.
    fn can_create(&self) -> bool {
        false
    }

    /// What there is to be known of it beside what its client knows, asked of its server over a connection of its
    /// own that may take `within`.
    fn look(&self, within: Span) -> Vec<Fact> {
        let _ = within;
        Vec::new()
    }

    /// What its protocol calls the two ways in which a write lasts, those of [`Durability`].
    fn write_names(&self) -> [&'static str; 2] {
        ["writes", "flushes"]
    }
}

/// A kind of URL.
///
/// `examples/custom_scheme.rs` makes one of pages in the memory of its process, and puts a verified load on it.
///
/// ```
/// use netswap::real::{Location, Scheme, SchemeTable, UrlProblem};
/// # use netswap::real::{OpenOptions, RealClient};
///
/// #[derive(Debug)]
/// struct Tape(u8);
/// # impl std::fmt::Display for Tape {
/// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
/// #         write!(f, "tape://{}", self.0)
/// #     }
/// # }
/// impl Location for Tape {
///     // ...
/// #     fn host(&self) -> Option<String> { None }
/// #     fn client(&self, _: std::net::IpAddr, _: &OpenOptions) -> Box<dyn RealClient> {
/// #         unimplemented!()
/// #     }
/// }
///
/// let read = |url: &str| -> Result<Tape, UrlProblem> { Ok(Tape(url["tape://".len()..].parse()?)) };
/// let mut schemes = SchemeTable::builtin();
/// schemes.register(Scheme::new("tape", "tape://NUMBER", read))?;
/// assert_eq!(schemes.parse("tape://7")?.scheme(), "tape");
/// assert_eq!(schemes.parse("tape://x").unwrap_err().to_string(), "invalid digit found in string");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Scheme {
    name: &'static str,
    form: &'static str,
    parse: Arc<Parse>,
    list: Option<(&'static str, Arc<List>)>,
}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheme").field("name", &self.name).field("form", &self.form).finish()
    }
}

impl Scheme {
    /// A scheme that begins with `name`, is written as `form`, and is read by `parse`, which is given the whole URL.
    pub fn new<L: Location + 'static>(
        name: &'static str,
        form: &'static str,
        parse: impl Fn(&str) -> Result<L, UrlProblem> + Send + Sync + 'static,
    ) -> Scheme {
        let parse: Arc<Parse> = Arc::new(move |text| Ok(Arc::new(parse(text)?)));
        Scheme { name, form, parse, list: None }
    }

    /// The same, with a way to list what a server has: what is listed is written as `form`.
    pub fn with_list(
        self,
        form: &'static str,
        list: impl Fn(&str, &ListOptions) -> Result<Listing, ListFailure> + Send + Sync + 'static,
    ) -> Scheme {
        Scheme { list: Some((form, Arc::new(list))), ..self }
    }

    /// What stands before `://`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How a URL of it is written.
    pub fn form(&self) -> &'static str {
        self.form
    }
}

/// There is a scheme of this name already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is a scheme {name:?} already")]
pub struct SchemeTaken {
    /// The name.
    pub name: &'static str,
}

/// The kinds of URLs that are understood.
///
/// ```
/// use netswap::real::SchemeTable;
///
/// let schemes = SchemeTable::builtin();
/// let url = schemes.parse("nfs://server/export/area0?write=unstable")?;
/// assert_eq!((url.scheme(), url.host().as_deref()), ("nfs", Some("server")));
///
/// let error = schemes.parse("nbd://server/disk").unwrap_err().to_string();
/// assert!(error.starts_with("\"nbd\" is no kind of store; known: nfs"), "{error}");
/// # Ok::<(), netswap::real::StoreUrlError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct SchemeTable {
    schemes: Vec<Scheme>,
}

impl SchemeTable {
    /// One that knows nothing.
    pub fn empty() -> SchemeTable {
        SchemeTable::default()
    }

    /// All stores of this project.
    pub fn builtin() -> SchemeTable {
        SchemeTable { schemes: vec![nfs::scheme(), iscsi::scheme()] }
    }

    /// Adds a scheme.
    ///
    /// # Errors
    /// When there is one of its name.
    pub fn register(&mut self, scheme: Scheme) -> Result<(), SchemeTaken> {
        if self.schemes.iter().any(|other| other.name == scheme.name) {
            return Err(SchemeTaken { name: scheme.name });
        }
        self.schemes.push(scheme);
        Ok(())
    }

    /// All that are known, in the order of their coming.
    pub fn schemes(&self) -> &[Scheme] {
        &self.schemes
    }

    /// Reads a URL.
    ///
    /// # Errors
    /// When it begins with nothing that is known, or its scheme cannot read it.
    pub fn parse(&self, text: &str) -> Result<StoreUrl, StoreUrlError> {
        let forms = || self.forms(|scheme| Some(scheme.form));
        let scheme = self.find(text, &forms)?;
        let location = (scheme.parse)(text)
            .map_err(|source| StoreUrlError::Scheme { name: scheme.name, source })?;
        Ok(StoreUrl { scheme: scheme.name, location })
    }

    /// Lists what a server has at `text`: a directory, or its targets.
    ///
    /// # Errors
    /// When nobody answers, the server refuses, or there is nothing of this kind to be listed.
    pub fn list(&self, text: &str, options: &ListOptions) -> Result<Listing, ListFailure> {
        let forms = || self.forms(|scheme| Some(scheme.list.as_ref()?.0));
        let scheme = self.find(text, &forms)?;
        match &scheme.list {
            Some((_, list)) => list(text, options),
            None => Err(ListFailure::NoList { scheme: scheme.name }),
        }
    }

    fn find(&self, text: &str, forms: &dyn Fn() -> String) -> Result<&Scheme, StoreUrlError> {
        let Some((name, _)) = text.split_once("://") else {
            return Err(StoreUrlError::NoScheme { text: redacted(text), forms: forms() });
        };
        let known = || self.schemes.iter().map(|scheme| scheme.name).collect::<Vec<_>>().join(", ");
        let scheme = self.schemes.iter().find(|scheme| scheme.name == name);
        scheme.ok_or_else(|| StoreUrlError::UnknownScheme {
            name: redacted(name),
            known: known(),
            forms: forms(),
        })
    }

    fn forms(&self, form: impl Fn(&Scheme) -> Option<&'static str>) -> String {
        self.schemes.iter().filter_map(form).collect::<Vec<_>>().join(" or ")
    }
}

/// The text without what may be a secret in it: whoever writes a URL wrong has still written a password.
///
/// ```
/// assert_eq!(netswap::real::redacted("iscsi:/me%secret@host/t/1?x=y"), "...@host/t/1?...");
/// ```
pub fn redacted(text: &str) -> String {
    let (before, query) = text.split_once('?').unwrap_or((text, ""));
    let shown = if query.is_empty() { "" } else { "?..." };
    match before.rfind('@') {
        Some(at) => format!("...{}{shown}", &before[at..]),
        // The question mark may be one of a password.
        None if query.contains('@') => "...".into(),
        None => format!("{before}{shown}"),
    }
}

/// A URL that was understood.
///
/// Read from text, it is one of [`SchemeTable::builtin`].
///
/// ```
/// use netswap::real::StoreUrl;
///
/// let url: StoreUrl = "nfs://server/export/area0?write=unstable".parse()?;
/// assert_eq!(url.to_string(), "nfs://server/export/area0");
/// # Ok::<(), netswap::real::StoreUrlError>(())
/// ```
#[derive(Clone, Debug)]
pub struct StoreUrl {
    scheme: &'static str,
    location: Arc<dyn Location>,
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<StoreUrl, StoreUrlError> {
        SchemeTable::builtin().parse(text)
    }
}

impl fmt::Display for StoreUrl {
    /// Without parameters and secrets, as a name for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location.fmt(f)
    }
}

impl StoreUrl {
    /// What stands before `://`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// The server, by name or by address, if there is one.
    pub fn host(&self) -> Option<String> {
        self.location.host()
    }

    /// Whether a client can make the store, and give it its length.
    pub fn can_create(&self) -> bool {
        self.location.can_create()
    }

    /// What there is to be known of it beside what its client knows, asked over a connection of its own.
    pub fn look(&self, within: Span) -> Vec<Fact> {
        self.location.look(within)
    }

    /// What its protocol calls writes that last in this way.
    pub fn write_name(&self, durability: Durability) -> &'static str {
        let [with_write, by_flush] = self.location.write_names();
        match durability {
            Durability::WithWrite => with_write,
            Durability::ByFlush => by_flush,
        }
    }

    /// The client of it, for a host that has this address.
    pub(super) fn client(&self, address: IpAddr, options: &OpenOptions) -> Box<dyn RealClient> {
        self.location.client(address, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_of_the_table_parses_into_its_own_kind() {
        let table = SchemeTable::builtin();
        for scheme in table.schemes() {
            let url = table.parse(&format!("{}://host/first/1", scheme.name())).unwrap();
            assert_eq!(url.scheme(), scheme.name());
        }
    }

    #[test]
    fn what_is_no_url_is_told_how_to_be_written() {
        for text in ["", "area0", "nbd://h/iqn/1", "NFS://h/e/f"] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains("nfs://host"), "{text}: {error}");
        }
        let error = "nfs://h/e/f?rsize=1".parse::<StoreUrl>().unwrap_err().to_string();
        assert!(error.contains("known: version"), "{error}");
    }

    #[test]
    fn what_may_be_a_secret_is_not_repeated() {
        for text in ["u%geheim@h", "x:/u%geheim@h/iqn/1", "nbd:u@geheim@h/x?a=geheim", "?p=geheim"]
        {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{text}: {error}");
        }
        let error = "nbd://u%ge?heim@h/x".parse::<StoreUrl>().unwrap_err().to_string();
        assert!(!error.contains("ge?") && !error.contains("heim"), "{error}");
        let error = "u%geheim@nbd://h".parse::<StoreUrl>().unwrap_err().to_string();
        assert!(!error.contains("geheim"), "{error}");
    }

    #[test]
    fn a_name_has_one_meaning() {
        let mut table = SchemeTable::builtin();
        let taken = table.register(nfs::scheme()).unwrap_err();
        assert_eq!(taken, SchemeTaken { name: "nfs" });
    }
}
