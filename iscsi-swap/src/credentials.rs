//! Secrets that do not stand in a URL: from a file or from the environment.
//!
//! For use at start alone: it reads files. A secret in a URL is to be seen in the list of processes
//! and in the shell's history; one in a file or in the environment is not.

use std::fs::File;
use std::io::{self, Read};

use zeroize::Zeroizing;

use crate::auth::{ChapConfig, Credentials, Entropy, SECRET_BYTES_MAX, Secret};
use crate::url::{PortalUrl, SecretSource};

/// Names the initiator's secret in the environment.
pub const PASSWORD_VARIABLE: &str = "NETSWAP_CHAP_PASSWORD";
/// Names the target's secret in the environment.
pub const TARGET_PASSWORD_VARIABLE: &str = "NETSWAP_CHAP_TARGET_PASSWORD";

/// Why there are no credentials. None of the variants holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A user without a secret.
    #[error(
        "no password for {user:?}: set {variable}, or name a file with {parameter}_file=, or write it \
         into the URL"
    )]
    NoSecret {
        /// The user.
        user: String,
        /// Where in the environment it was looked for.
        variable: &'static str,
        /// What it is called in the URL.
        parameter: &'static str,
    },
    /// A file with a secret that cannot be read.
    #[error("cannot read the password in {path:?}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A secret that is empty or too long.
    #[error("the password in {place} has no bytes, or more than {SECRET_BYTES_MAX}")]
    Length {
        /// The file or the variable.
        place: String,
    },
}

impl PortalUrl {
    /// The credentials for CHAP, if the URL names a user. What is not in the URL itself comes from
    /// the file that it names, and else from the variable [`PASSWORD_VARIABLE`] or
    /// [`TARGET_PASSWORD_VARIABLE`], which `environment` looks up. An end of line behind the secret
    /// in a file does not belong to it.
    ///
    /// ```
    /// use netswap_iscsi::IscsiUrl;
    ///
    /// let url: IscsiUrl = "iscsi://user@server/iqn.2026-01.test:disk/1".parse()?;
    /// let secret = |name: &str| (name == "NETSWAP_CHAP_PASSWORD").then(|| "correct horse".into());
    /// let chap = url.portal.credentials(secret)?.unwrap();
    /// assert_eq!(chap.initiator.user, "user");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If there is a user, and no secret of 1 to 255 bytes for it.
    pub fn credentials(
        &self,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<ChapConfig>, CredentialsError> {
        let Some(user) = &self.user else { return Ok(None) };
        let target = self.target_user.as_deref().map(|user| (user, &self.target_password));
        ChapConfig::find((user, &self.password), target, environment).map(Some)
    }
}

impl ChapConfig {
    /// The credentials of an initiator and perhaps of a target, each given by its user and the place of its
    /// secret: for either side. As [`PortalUrl::credentials`] says.
    ///
    /// # Errors
    /// If a secret is not there, or not of 1 to 255 bytes.
    pub fn find(
        initiator: (&str, &SecretSource),
        target: Option<(&str, &SecretSource)>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<ChapConfig, CredentialsError> {
        let initiator = find(initiator, ("password", PASSWORD_VARIABLE), &environment)?;
        let named = ("target_password", TARGET_PASSWORD_VARIABLE);
        let target = target.map(|target| find(target, named, &environment)).transpose()?;
        Ok(ChapConfig { initiator, target })
    }
}

impl Entropy {
    /// Bytes of the operating system, that nobody can guess.
    ///
    /// # Errors
    /// If `/dev/urandom` cannot be read.
    pub fn of_system() -> io::Result<Entropy> {
        let mut bytes = Zeroizing::new([0; 32]);
        File::open("/dev/urandom")?.read_exact(&mut *bytes)?;
        Ok(Entropy::new(*bytes))
    }
}

fn find(
    (user, source): (&str, &SecretSource),
    (parameter, variable): (&'static str, &'static str),
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Credentials, CredentialsError> {
    let secret = match source {
        SecretSource::Given(secret) => secret.clone(),
        SecretSource::File(path) => read(path)?,
        SecretSource::Environment => {
            let value = environment(variable).map(Zeroizing::new).ok_or_else(|| {
                CredentialsError::NoSecret { user: user.into(), variable, parameter }
            })?;
            let length = || CredentialsError::Length { place: variable.into() };
            Secret::new(value.as_bytes()).ok_or_else(length)?
        }
    };
    Ok(Credentials { user: user.into(), secret })
}

fn read(path: &str) -> Result<Secret, CredentialsError> {
    // Room for one more than fits, with its end of line: what is longer is an error, not cut.
    let mut bytes = Zeroizing::new([0; SECRET_BYTES_MAX + 3]);
    let mut len = 0;
    let failed = |source| CredentialsError::File { path: path.into(), source };
    let mut file = File::open(path).map_err(failed)?;
    while len < bytes.len() {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let text = &bytes[..len];
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    Secret::new(text).ok_or_else(|| CredentialsError::Length { place: path.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::IscsiUrl;

    fn chap(url: &str, variables: &[(&str, &str)]) -> Result<ChapConfig, CredentialsError> {
        let url: IscsiUrl = url.parse().unwrap();
        let found = |name: &str| {
            let variable = variables.iter().find(|(known, _)| *known == name);
            variable.map(|(_, value)| (*value).into())
        };
        url.portal.credentials(found).map(|chap| chap.expect("the URL names a user"))
    }

    #[test]
    fn a_secret_comes_from_the_url_a_file_or_the_environment() {
        let path = std::env::temp_dir().join(format!("netswap-secret-{}", std::process::id()));
        std::fs::write(&path, "from a file\r\n").unwrap();
        let file = path.to_str().unwrap();
        let env = [(PASSWORD_VARIABLE, "from the environment"), (TARGET_PASSWORD_VARIABLE, "back")];
        for (url, secret) in [
            ("iscsi://u%given@h/iqn.a/0".into(), "given"),
            (format!("iscsi://u@h/iqn.a/0?password_file={file}"), "from a file"),
            ("iscsi://u@h/iqn.a/0?target_user=t".into(), "from the environment"),
        ] {
            let chap = chap(&url, &env).unwrap();
            assert_eq!(chap.initiator.secret.expose(), secret.as_bytes());
            if let Some(target) = chap.target {
                assert_eq!((&*target.user, target.secret.expose()), ("t", &b"back"[..]));
            }
        }
        for bad in [vec![b'x'; 257], vec![b'x'; 4000], b"\n".to_vec()] {
            std::fs::write(&path, bad).unwrap();
            let error = chap(&format!("iscsi://u@h/iqn.a/0?password_file={file}"), &env);
            assert!(matches!(error, Err(CredentialsError::Length { .. })));
        }
        std::fs::remove_file(&path).unwrap();
        let error = chap(&format!("iscsi://u@h/iqn.a/0?password_file={file}"), &env);
        assert!(matches!(error, Err(CredentialsError::File { .. })));
    }

    #[test]
    fn a_user_without_a_secret_is_told_where_to_put_it() {
        let error = chap("iscsi://u@h/iqn.a/0", &[]).unwrap_err().to_string();
        assert!(error.contains("set NETSWAP_CHAP_PASSWORD, or name a file with password_file="));
        let url = "iscsi://u%p@h/iqn.a/0?target_user=t";
        let error = chap(url, &[(PASSWORD_VARIABLE, "p")]).unwrap_err().to_string();
        assert!(error.contains("set NETSWAP_CHAP_TARGET_PASSWORD"), "{error}");
        let none: IscsiUrl = "iscsi://h/iqn.a/0".parse().unwrap();
        assert_eq!(none.portal.credentials(|_| Some("unused".into())).unwrap(), None);
    }
}
