//! `qemu-img` as a second reader of a logical unit, by libiscsi.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::daemon::which;
use super::skip::or_skip;

/// Runs it.
fn qemu_img(args: &[&str]) {
    let out = Command::new("qemu-img").args(args).output().unwrap();
    assert!(out.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Copies the unit at `url` to `copy`, and compares the unit with the file that its target keeps it in. Without
/// qemu-img, it is that file itself which is to be read.
pub(crate) fn read_back(url: &str, file: &Path, copy: &Path) -> PathBuf {
    let there = which("qemu-img").then_some(()).ok_or_else(|| "qemu-img is not installed".into());
    if or_skip(there).is_none() {
        return file.into();
    }
    let (of_target, of_copy) = (file.to_str().unwrap(), copy.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "raw", url, of_copy]);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", url, of_target]);
    copy.into()
}
