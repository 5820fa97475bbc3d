//! Checks on the tracked files themselves.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::shell;

const LONG: usize = 500;
const TOO_LONG: usize = 800;
/// What a module's doc has to say to be longer than [`LONG`] lines.
const REASON: &str = "long because";

/// Fails for source files over 800 lines, and for those over 500 whose module doc does not say why.
pub fn file_sizes() -> Result<()> {
    let mut wrong = Vec::new();
    for (path, text) in tracked_text()?.iter().filter(|(path, _)| path.ends_with(".rs")) {
        wrong.extend(size_complaint(path, text));
    }
    complain(wrong)
}

fn size_complaint(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    let module_doc = text.lines().take_while(|line| line.starts_with("//!"));
    let has_reason = || module_doc.collect::<Vec<_>>().join(" ").to_lowercase().contains(REASON);
    if lines > TOO_LONG {
        Some(format!("{path}: {lines} lines, at most {TOO_LONG} are allowed: split it"))
    } else if lines > LONG && !has_reason() {
        Some(format!("{path}: {lines} lines; over {LONG} the module doc must say `{REASON} …`"))
    } else {
        None
    }
}

/// Fails for tracked files that name a folder of the machine they were written on.
pub fn machine_paths() -> Result<()> {
    let root = shell::repo_root()?.display().to_string();
    let home = std::env::var("HOME").unwrap_or_default();
    let folders: Vec<String> = [root, home, "/root/".into(), "/home/".into(), "/Users/".into()]
        .into_iter()
        .filter(|folder| folder.len() > 2)
        .collect();
    let mut wrong = Vec::new();
    // The list above has to spell what it looks for.
    for (path, text) in tracked_text()?.iter().filter(|(path, _)| path != "crates/xtask/src/lint/tree.rs") {
        for (number, line) in text.lines().enumerate() {
            if let Some(folder) = folders.iter().find(|folder| names(line, folder)) {
                wrong.push(format!("{path}:{}: names {folder}, a folder of one machine", number + 1));
            }
        }
    }
    complain(wrong)
}

/// Whether `line` holds an absolute path that starts with `folder`.
fn names(line: &str, folder: &str) -> bool {
    let starts_path =
        |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "/}._-$~".contains(c));
    let ends_name =
        |at: usize| folder.ends_with('/') || !line[at..].starts_with(|c: char| c.is_alphanumeric());
    line.match_indices(folder).any(|(at, found)| starts_path(at) && ends_name(at + found.len()))
}

/// Every tracked file that is text, by its path in the repository.
fn tracked_text() -> Result<Vec<(String, String)>> {
    let root = shell::repo_root()?;
    let listing = shell::capture(Command::new("git").args(["ls-files", "-z"]).current_dir(&root))?;
    let read =
        |path: &str| fs::read_to_string(Path::new(&root).join(path)).ok().map(|text| (path.to_owned(), text));
    Ok(listing.split('\0').filter(|path| !path.is_empty()).filter_map(read).collect())
}

fn complain(wrong: Vec<String>) -> Result<()> {
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_needs_a_reason_and_a_very_long_one_cannot_have_one() {
        let file = |doc: &str, lines: usize| format!("//! {doc}\n{}", "x\n".repeat(lines - 1));
        assert_eq!(size_complaint("a.rs", &file("Short.", 500)), None);
        assert_eq!(size_complaint("a.rs", &file("Long because one table.", 501)), None);
        let unexplained = size_complaint("a.rs", &file("Why not.", 501)).unwrap();
        assert!(unexplained.starts_with("a.rs: 501 lines; over 500"), "{unexplained}");
        let endless = size_complaint("a.rs", &file("Long because.", 801)).unwrap();
        assert!(endless.starts_with("a.rs: 801 lines, at most 800"), "{endless}");
    }

    #[test]
    fn only_absolute_paths_count() {
        assert!(names("see /root/x", "/root/"));
        assert!(names("\"/home/me\"", "/home/"));
        assert!(!names("{base}/root/x", "/root/"));
        assert!(!names("docker.io/home/x", "/home/"));
        assert!(names("cd /src/gqla && make", "/src/gqla"));
        assert!(!names("/src/gqlatest", "/src/gqla"));
    }
}
