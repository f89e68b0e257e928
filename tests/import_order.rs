//! Goal: imports between the crates of the workspace run one way, as `docs/architecture.md` draws
//! them.
//!
//! Method: the manifests are read, and every dependency of one crate of the workspace on another,
//! of whatever kind (normal, development, build, for one target, renamed), must be in the table
//! below. The same checker is then given manifests with a planted edge that it has to find.

use std::path::Path;

use toml::{Table, Value};

/// Every package of the workspace: its folder, its name, and what it may import.
const ORDER: [(&str, &str, &[&str]); 7] = [
    // Its tests only: cargo refuses a circle of anything but development dependencies.
    ("reserve", "netswap-reserve", &["netswap-reserve-model"]),
    ("reserve/model", "netswap-reserve-model", &["netswap-reserve"]),
    ("net", "netswap-net", &["netswap-reserve"]),
    ("swap", "netswap-swap", &["netswap-reserve"]),
    ("nfs-swap", "netswap-nfs", &["netswap-reserve", "netswap-net", "netswap-swap"]),
    ("iscsi-swap", "netswap-iscsi", &["netswap-reserve", "netswap-net", "netswap-swap"]),
    (
        ".",
        "netswap",
        &[
            "netswap-reserve",
            "netswap-reserve-model",
            "netswap-net",
            "netswap-swap",
            "netswap-nfs",
            "netswap-iscsi",
        ],
    ),
];

const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// The manifests of a workspace, by folder; `.` is the root's.
type Manifests = Vec<(String, Table)>;

fn table<'a>(value: &'a Table, key: &str) -> Option<&'a Table> {
    value.get(key).and_then(Value::as_table)
}

/// The package behind the dependency `key`, whatever it is called here.
fn package<'a>(key: &'a str, spec: &'a Value, workspace: Option<&'a Table>) -> &'a str {
    let spec = match (spec.get("workspace"), workspace.and_then(|w| w.get(key))) {
        (Some(Value::Boolean(true)), Some(inherited)) => inherited,
        _ => spec,
    };
    spec.get("package").and_then(Value::as_str).unwrap_or(key)
}

/// The packages that `manifest` depends on, of every kind and for every target.
fn imports<'a>(manifest: &'a Table, workspace: Option<&'a Table>) -> Vec<&'a str> {
    let targets = table(manifest, "target").into_iter().flat_map(Table::values);
    std::iter::once(manifest)
        .chain(targets.filter_map(Value::as_table))
        .flat_map(|scope| KINDS.iter().filter_map(|kind| table(scope, kind)))
        .flat_map(|dependencies| dependencies.iter())
        .map(|(key, spec)| package(key, spec, workspace))
        .collect()
}

/// Everything that breaks the order, one line each.
fn violations(manifests: &Manifests) -> Vec<String> {
    let mut found = Vec::new();
    let root = manifests.iter().find(|(folder, _)| folder == ".").map(|(_, manifest)| manifest);
    let workspace = root
        .and_then(|root| table(root, "workspace"))
        .and_then(|workspace| table(workspace, "dependencies"));
    for (folder, _, _) in ORDER {
        if !manifests.iter().any(|(known, _)| known == folder) {
            found.push(format!("{folder}: no such member"));
        }
    }
    for (folder, manifest) in manifests {
        let name = table(manifest, "package").and_then(|p| p.get("name")).and_then(Value::as_str);
        let Some((_, _, allowed)) =
            ORDER.iter().find(|(known, package, _)| known == folder && Some(*package) == name)
        else {
            found.push(format!("{folder}: {name:?} has no place in the order"));
            continue;
        };
        for import in imports(manifest, workspace) {
            let ours = ORDER.iter().any(|(_, package, _)| *package == import);
            if ours && !allowed.contains(&import) {
                found.push(format!("{folder}: imports {import}"));
            }
        }
    }
    found
}

fn parse(text: &str) -> Table {
    text.parse().expect("a manifest is TOML")
}

/// The manifests of this workspace: the root's, and those of the members that it lists.
fn ours() -> Manifests {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |folder: &str| {
        let path = root.join(folder).join("Cargo.toml");
        parse(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    };
    let top = read(".");
    let members = table(&top, "workspace").expect("the root is a workspace")["members"]
        .as_array()
        .expect("members are a list")
        .iter()
        .map(|member| member.as_str().expect("a member is a folder").to_owned());
    let mut manifests: Manifests = members.map(|folder| (folder.clone(), read(&folder))).collect();
    manifests.push((".".into(), top));
    manifests
}

#[test]
fn imports_run_one_way() {
    assert_eq!(violations(&ours()), Vec::<String>::new());
    // The drawn edges are there to be seen: a checker that sees no edge would find no wrong one.
    let manifests = ours();
    let top = &manifests.last().expect("the root").1;
    let workspace = table(top, "workspace").and_then(|w| table(w, "dependencies"));
    for (folder, manifest) in &manifests {
        let imports = imports(manifest, workspace);
        let (_, _, allowed) = ORDER.iter().find(|(known, ..)| known == folder).expect("known");
        let missing: Vec<_> = allowed.iter().filter(|edge| !imports.contains(edge)).collect();
        assert!(missing.is_empty(), "{folder} is drawn above {missing:?} and does not import it");
    }
}

/// Adds `text` to the manifest of `folder`.
fn planted(folder: &str, text: &str) -> Vec<String> {
    let mut manifests = ours();
    let (_, manifest) = manifests.iter_mut().find(|(known, _)| known == folder).expect("known");
    merge(manifest, parse(text));
    violations(&manifests)
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[test]
fn canary_a_planted_edge_is_found() {
    for (folder, text, import) in [
        ("net", "[dependencies]\nnetswap-swap.workspace = true", "netswap-swap"),
        ("swap", "[dependencies]\nnetswap-net = { path = \"../net\" }", "netswap-net"),
        ("swap", "[dev-dependencies]\nnetswap-nfs.workspace = true", "netswap-nfs"),
        ("nfs-swap", "[build-dependencies]\nnetswap-iscsi = \"0.1\"", "netswap-iscsi"),
        (
            "iscsi-swap",
            "[dependencies]\nother = { package = \"netswap-nfs\", path = \"../nfs-swap\" }",
            "netswap-nfs",
        ),
        ("reserve", "[target.'cfg(unix)'.dependencies]\nnetswap.path = \"..\"", "netswap"),
    ] {
        assert_eq!(planted(folder, text), [format!("{folder}: imports {import}")], "{text}");
    }
}

#[test]
fn canary_an_edge_renamed_by_the_workspace_is_found() {
    let mut manifests = ours();
    for (folder, text) in [
        (
            ".",
            "[workspace.dependencies]\nharmless = { package = \"netswap-swap\", path = \"swap\" }",
        ),
        ("net", "[dependencies]\nharmless.workspace = true"),
    ] {
        let (_, manifest) = manifests.iter_mut().find(|(known, _)| known == folder).expect("known");
        merge(manifest, parse(text));
    }
    assert_eq!(violations(&manifests), ["net: imports netswap-swap"]);
}

#[test]
fn canary_a_member_without_a_place_in_the_order_is_found() {
    let mut manifests = ours();
    manifests.push(("extra".into(), parse("[package]\nname = \"netswap-extra\"")));
    manifests.retain(|(folder, _)| folder != "net");
    assert_eq!(
        violations(&manifests),
        ["net: no such member", "extra: Some(\"netswap-extra\") has no place in the order"]
    );
}
