//! Who may log in to a served target, and what it proves itself with.
//!
//! Secrets come from files or from the environment, never from the command line: that is to be seen in the list
//! of processes.

use std::path::PathBuf;

use netswap::iscsi::{ChapConfig, CredentialsError, SecretSource};

use super::{Failure, out};

#[derive(clap::Args)]
pub(super) struct ChapArgs {
    /// Let initiators in that prove by CHAP to be USER. The password is in the file of --chap-file, or in
    /// NETSWAP_CHAP_PASSWORD [default: whoever comes]
    #[arg(long, value_name = "USER")]
    chap: Option<String>,
    /// The file with the password of --chap
    #[arg(long, value_name = "PATH", requires = "chap")]
    chap_file: Option<PathBuf>,
    /// Prove to initiators that ask for it to be USER. The password is in the file of --chap-target-file, or
    /// in NETSWAP_CHAP_TARGET_PASSWORD
    #[arg(long, value_name = "USER", requires = "chap")]
    chap_target: Option<String>,
    /// The file with the password of --chap-target
    #[arg(long, value_name = "PATH", requires = "chap_target")]
    chap_target_file: Option<PathBuf>,
}

impl ChapArgs {
    /// Who may log in, if not whoever comes.
    pub(super) fn config(&self) -> Result<Option<ChapConfig>, Failure> {
        let Some(user) = &self.chap else { return Ok(None) };
        check_user("--chap", user)?;
        if let Some(target) = &self.chap_target {
            check_user("--chap-target", target)?;
        }
        let source = (user.as_str(), &place(self.chap_file.as_ref())?);
        let target_place = place(self.chap_target_file.as_ref())?;
        let target = self.chap_target.as_deref().map(|user| (user, &target_place));
        let chap = ChapConfig::find(source, target, |name| std::env::var(name).ok());
        let chap = chap.map_err(|error| match error {
            CredentialsError::NoSecret { user, variable, parameter } => {
                let option =
                    if parameter == "password" { "--chap-file" } else { "--chap-target-file" };
                Failure::usage(format_args!(
                    "no password for {user:?}: set {variable}, or name a file with {option}"
                ))
            }
            other => Failure::usage(other),
        })?;
        // RFC 7143 section 9.2.1: or who asks the one for an answer has that of the other.
        if chap.target.as_ref().is_some_and(|target| target.secret == chap.initiator.secret) {
            return Err(Failure::usage("the passwords of --chap and --chap-target are the same"));
        }
        let all = std::iter::once(&chap.initiator).chain(&chap.target);
        for credentials in all.filter(|credentials| credentials.secret.is_short()) {
            out::note(format_args!(
                "the password of {:?} has less than 12 bytes: whoever overhears a login can guess it (RFC 7143 section \
                 9.2.1)",
                credentials.user
            ));
        }
        Ok(Some(chap))
    }

    /// Whether whoever comes is not let in.
    pub(super) fn is_given(&self) -> bool {
        self.chap.is_some()
    }

    /// The user part of a URL, and its parameter, for who may log in.
    pub(super) fn in_url(&self) -> (String, Option<String>) {
        let user = self.chap.as_ref().map_or(String::new(), |user| format!("{user}@"));
        (user, self.chap_target.as_ref().map(|user| format!("target_user={user}")))
    }
}

/// What is none may be a password in the wrong place: it is not shown.
fn check_user(option: &str, user: &str) -> Result<(), Failure> {
    let fits = |c: char| c.is_ascii_graphic() && !"@:/?%&#".contains(c);
    match (1..=255).contains(&user.len()) && user.chars().all(fits) {
        true => Ok(()),
        false => Err(Failure::usage(format_args!(
            "{option}: a name is 1 to 255 letters, digits and signs, but none of @ : / ? % & #; its password goes \
             into a file or the environment"
        ))),
    }
}

fn place(file: Option<&PathBuf>) -> Result<SecretSource, Failure> {
    let Some(path) = file else { return Ok(SecretSource::Environment) };
    let path = path
        .to_str()
        .ok_or_else(|| Failure::usage(format_args!("{}: the path is not UTF-8", path.display())))?;
    Ok(SecretSource::File(path.into()))
}
