//! Which room may call which, and which libraries a room may pull in.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

use crate::shell::{self, cargo};

/// A room and the rooms it may use. `model` is the vocabulary that all may speak, and is left out.
const ARROWS: &[(&str, &[&str])] = &[
    ("gqla-model", &[]),
    ("gqla-api", &[]),
    ("gqla-planner", &[]),
    ("gqla-weights", &[]),
    ("gqla-kernels", &[]),
    ("gqla-protocol", &[]),
    ("gqla-telemetry", &[]),
    ("gqla-engine", &["gqla-kernels", "gqla-weights"]),
    ("gqla-convert", &["gqla-weights"]),
    ("gqla-fleet", &["gqla-api", "gqla-planner"]),
    ("gqla-decide", &["gqla-api", "gqla-fleet", "gqla-planner"]),
    ("gqla-operator", &["gqla-api", "gqla-decide", "gqla-fleet", "gqla-planner", "gqla-telemetry"]),
    ("gqla-agent", &["gqla-api", "gqla-telemetry"]),
    ("gqla-fakenvml", &[]),
    ("gqla-deviceplugin", &["gqla-telemetry"]),
    ("gqla-ptxsim", &[]),
    ("gqla-fakecuda", &["gqla-ptxsim", "gqla-fakenvml"]),
    // It turns text into token ids, which the engine never sees, and inspects checkpoints it will not run.
    ("gqla-server", &["gqla-protocol", "gqla-engine", "gqla-planner", "gqla-telemetry", "gqla-weights"]),
    (
        "gqla-cli",
        &[
            "gqla-api",
            "gqla-decide",
            "gqla-fleet",
            "gqla-planner",
            "gqla-protocol",
            "gqla-weights",
            "gqla-engine",
            "gqla-kernels",
            "gqla-convert",
        ],
    ),
    ("gqla-testkit", &["gqla-api", "gqla-fakenvml"]),
];

/// Rooms that put everything together, and may use everything.
const ASSEMBLERS: [&str; 2] = ["gqla-xtask", "e2e"];

/// Rooms that any room's tests may use.
const TEST_ROOMS: [&str; 3] = ["gqla-testkit", "gqla-fakenvml", "gqla-fakecuda"];

/// A library, and the rooms that may have it among all their dependencies, direct or not.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("cudarc", &["gqla-kernels", "gqla-engine", "gqla-server", "gqla-cli"]),
    ("kube-client", &["gqla-operator", "gqla-agent", "gqla-cli", "gqla-testkit"]),
    (
        "tokio",
        &[
            "gqla-telemetry",
            "gqla-engine",
            "gqla-server",
            "gqla-operator",
            "gqla-agent",
            "gqla-cli",
            "gqla-testkit",
            "gqla-deviceplugin",
        ],
    ),
    ("nvml-wrapper", &["gqla-agent", "gqla-deviceplugin"]),
];

/// A library, and the only rooms that may name it in their manifest.
/// The stand-in's tests call it as the kernels do, and `lint` asks under which names it opens libraries.
const NAMED: &[(&str, &[&str])] = &[("cudarc", &["gqla-kernels", "gqla-fakecuda", "gqla-xtask"])];

/// Compares every workspace member with the tables above.
pub fn check() -> Result<()> {
    let mut command = MetadataCommand::new();
    command.current_dir(shell::repo_root()?).no_deps().other_options(["--locked".to_owned()]);
    let metadata = command.exec().context("cargo metadata failed")?;
    let members: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        wrong.extend(forbidden_rooms(package, &members));
        wrong.extend(forbidden_names(package));
        wrong.extend(forbidden_libraries(package.name.as_str())?);
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn forbidden_rooms(package: &Package, members: &BTreeSet<&str>) -> Vec<String> {
    let name = package.name.as_str();
    let edges = package.dependencies.iter().filter(|dependency| members.contains(dependency.name.as_str()));
    edges
        .filter(|edge| !may_use(name, &edge.name, edge.kind == DependencyKind::Development))
        .map(|edge| {
            format!(
                "{name} depends on {}: the table in crates/xtask/src/lint/arrows.rs has no such arrow",
                edge.name
            )
        })
        .collect()
}

/// Tests may use the test kit and the stand-ins for NVML and libcuda besides what the room itself may use.
fn may_use(room: &str, used: &str, in_tests: bool) -> bool {
    let allowed = ARROWS.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed);
    ASSEMBLERS.contains(&room)
        || (in_tests && TEST_ROOMS.contains(&used))
        || allowed.is_some_and(|allowed| used == "gqla-model" || allowed.contains(&used))
}

fn forbidden_names(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    let forbidden = |library: &str, rooms: &[&str]| {
        !rooms.contains(&name) && package.dependencies.iter().any(|dependency| dependency.name == library)
    };
    NAMED
        .iter()
        .filter(|(library, rooms)| forbidden(library, rooms))
        .map(|(library, rooms)| format!("{name} names {library}, which only {} may", rooms.join(", ")))
        .collect()
}

/// Asks `cargo tree`, which resolves features for the one room: metadata would unify those of the whole workspace.
fn forbidden_libraries(room: &str) -> Result<Vec<String>> {
    if ASSEMBLERS.contains(&room) {
        return Ok(Vec::new());
    }
    let tree = shell::capture(
        cargo()?
            .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
            .args(["-p", room]),
    )?;
    let linked: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let forbidden =
        LIBRARIES.iter().filter(|(library, rooms)| linked.contains(library) && !rooms.contains(&room));
    Ok(forbidden
        .map(|(library, _)| {
            format!("{room} links {library}; `cargo tree -p {room} -i {library}` shows through what")
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_point_one_way() {
        assert!(may_use("gqla-engine", "gqla-kernels", false));
        assert!(!may_use("gqla-kernels", "gqla-engine", false));
        assert!(!may_use("gqla-server", "gqla-kernels", false));
        assert!(!may_use("gqla-operator", "gqla-testkit", false));
        assert!(may_use("gqla-operator", "gqla-testkit", true));
        assert!(may_use("gqla-xtask", "gqla-server", false));
        assert!(!may_use("gqla-unheard-of", "gqla-model", false), "a new room has to be put in the table");
    }
}
