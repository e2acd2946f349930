//! Dependencies point in the direction that the design gives, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What each crate may use of the workspace.
const ALLOWED: &[(&str, &[&str])] = &[
    ("uruk-base", &[]),
    ("uruk-proto", &["uruk-base"]),
    ("uruk-consensus", &["uruk-base", "uruk-proto"]),
    ("uruk-client", &["uruk-base", "uruk-proto"]),
    ("uruk-dfs-sim", &["uruk-base", "uruk-proto", "uruk-consensus"]),
    ("uruk-tabletserver", &["uruk-base", "uruk-proto"]),
    ("uruk-master", &["uruk-base", "uruk-proto", "uruk-consensus"]),
];
/// Crates at the end of the line: they may use everything above.
const ENDS: &[&str] = &["uruk", "uruk-seal-model", "uruk-sim", "uruk-tests"];

fn workspace_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata runs");
    let names: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let dependencies = |package: &cargo_metadata::Package| {
        let normal = package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
        normal.map(|d| d.name.clone()).filter(|name| names.contains(name)).collect()
    };
    metadata.packages.iter().map(|package| (package.name.to_string(), dependencies(package))).collect()
}

#[test]
fn dependencies_point_left_only() {
    let found = workspace_dependencies();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    for (name, dependencies) in &found {
        if ENDS.contains(&name.as_str()) {
            continue;
        }
        let allowed =
            allowed.get(name.as_str()).unwrap_or_else(|| panic!("crate {name} is new: place it in the design"));
        for dependency in dependencies {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
    for name in ALLOWED.iter().map(|(name, _)| name).chain(ENDS) {
        assert!(found.contains_key(*name), "crate {name} is gone from the workspace");
    }
}

#[test]
fn no_server_crate_knows_the_simulation() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata runs");
    for package in metadata.packages.iter().filter(|p| !["uruk-sim", "uruk-base"].contains(&p.name.as_str())) {
        let normal = package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
        let simulation = normal.filter(|d| ["turmoil", "mad-turmoil", "uruk-sim"].contains(&d.name.as_str()));
        assert_eq!(simulation.count(), 0, "{} depends on the simulation", package.name);
    }
}
