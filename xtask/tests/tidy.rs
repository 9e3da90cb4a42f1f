//! The tidy test: holds the shape of the tree, so that a review need not.
//!
//! It reads sources and manifests as text and knows nothing of their meaning: layers point
//! downward, files are short and say what they are for, loose ends carry an issue number, and what
//! the documents name exists. Every check gathers all offenders before it fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms with their layers. An arrow (a normal or build dependency) goes to a lower layer only.
const LAYERS: &[(&str, u32)] = &[
    ("flux-types", 0),
    ("flux-env", 0),
    ("flux-history", 0),
    ("flux-telemetry", 0),
    ("flux-wire", 1),
    ("flux-proto", 1),
    ("flux-store", 1),
    ("flux-log", 2),
    ("flux-cluster", 2),
    ("flux-raft", 3),
    ("flux-cdc", 3),
    ("flux-client", 3),
    ("flux-server", 4),
    ("flux-gateway", 4),
    ("flux", 5),
    ("flux-sim", 5),
    ("xtask", 5),
];

/// Arrows that point downward and are forbidden all the same, in every kind of dependency.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "flux-gateway",
        &[
            "flux-types",
            "flux-store",
            "flux-proto",
            "flux-wire",
            "flux-log",
            "flux-raft",
            "flux-client",
        ],
        "the gateway serves any service and knows none",
    ),
    (
        "flux-server",
        &["flux-client"],
        "a node does not call itself through the SDK",
    ),
];

/// Rooms without an asynchronous runtime.
const WITHOUT_RUNTIME: &[&str] = &["flux-types", "flux-wire", "flux-store", "flux-history"];

const LINES_MAX: usize = 800;

/// Commands of the README that the suite cannot run from within itself.
const COMMANDS_NOT_RUN: &[&str] = &["cargo run --release", "scripts/test"];

/// Marks of the README's blocks that tests run: by the end-to-end tests, by `deploy/test-compose`.
const BLOCKS_RUN: &[&str] = &["sh test", "sh test by hand", "sh compose"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_path_buf()
}

/// Every file below `folder` that ends with `.extension`, without build output.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("a readable folder").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if name != "target" && name != "flux-data" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a source file is readable UTF-8")
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn assert_none(offenders: &[String], rule: &str) {
    assert!(
        offenders.is_empty(),
        "{rule}:\n  {}",
        offenders.join("\n  ")
    );
}

/// Package name to its manifest, for every member of the workspace.
fn manifests() -> BTreeMap<String, toml::Table> {
    let mut manifests = BTreeMap::new();
    let mut paths = vec![root().join("xtask/Cargo.toml")];
    for entry in fs::read_dir(root().join("crates")).expect("the rooms") {
        paths.push(entry.expect("a room").path().join("Cargo.toml"));
    }
    for path in paths {
        let manifest: toml::Table = text(&path).parse().expect("a manifest is TOML");
        let name = manifest
            .get("package")
            .and_then(|package| package.get("name"))
            .and_then(toml::Value::as_str)
            .expect("a package has a name");
        manifests.insert(name.to_owned(), manifest.clone());
    }
    manifests
}

fn dependencies(manifest: &toml::Table, kinds: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for kind in kinds {
        if let Some(table) = manifest.get(*kind).and_then(toml::Value::as_table) {
            names.extend(table.keys().cloned());
        }
    }
    names
}

#[test]
fn arrows_go_only_downward() {
    let layers: BTreeMap<&str, u32> = LAYERS.iter().copied().collect();
    let mut offenders = Vec::new();
    for (name, manifest) in manifests() {
        let Some(layer) = layers.get(name.as_str()) else {
            offenders.push(format!("{name} has no layer: add it to LAYERS"));
            continue;
        };
        for dependency in dependencies(&manifest, &["dependencies", "build-dependencies"]) {
            if let Some(below) = layers.get(dependency.as_str())
                && below >= layer
            {
                offenders.push(format!(
                    "{name} (layer {layer}) -> {dependency} (layer {below})"
                ));
            }
        }
        let all = dependencies(
            &manifest,
            &["dependencies", "build-dependencies", "dev-dependencies"],
        );
        for (from, forbidden, why) in FORBIDDEN {
            if *from == name {
                for dependency in forbidden
                    .iter()
                    .filter(|dependency| all.contains(**dependency))
                {
                    offenders.push(format!("{name} -> {dependency}: {why}"));
                }
            }
        }
        if WITHOUT_RUNTIME.contains(&name.as_str()) && all.contains("tokio") {
            offenders.push(format!(
                "{name} -> tokio: this room has no asynchronous runtime"
            ));
        }
    }
    assert_none(&offenders, "an arrow between rooms that must not be");
}

#[test]
fn every_dependency_comes_from_the_workspace_table() {
    let mut offenders = Vec::new();
    for (name, manifest) in manifests() {
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let Some(table) = manifest.get(kind).and_then(toml::Value::as_table) else {
                continue;
            };
            for (dependency, value) in table {
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    offenders.push(format!("{name}: {dependency}"));
                }
            }
        }
    }
    assert_none(&offenders, "a dependency without `workspace = true`");
}

#[test]
fn every_room_obeys_the_lints() {
    let mut offenders = Vec::new();
    for (name, manifest) in manifests() {
        let inherits = manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            .and_then(toml::Value::as_bool);
        if inherits != Some(true) {
            offenders.push(name);
        }
    }
    assert_none(&offenders, "a room without `[lints] workspace = true`");
}

#[test]
fn every_source_file_is_short_and_says_what_it_is_for() {
    let mut offenders = Vec::new();
    for path in files(&root(), "rs") {
        let text = text(&path);
        let lines = text.lines().count();
        if lines > LINES_MAX {
            offenders.push(format!(
                "{}: {lines} lines, at most {LINES_MAX}",
                relative(&path)
            ));
        }
        if !text
            .lines()
            .next()
            .is_some_and(|line| line.starts_with("//! "))
        {
            offenders.push(format!("{}: does not open with `//! `", relative(&path)));
        }
    }
    assert_none(&offenders, "a source file out of shape");
}

#[test]
fn every_loose_end_has_an_issue() {
    // Put together here so that this file does not find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    let mut offenders = Vec::new();
    let mut paths = files(&root(), "rs");
    paths.extend(files(&root(), "toml"));
    paths.extend(files(&root(), "proto"));
    for path in paths {
        for (number, line) in text(&path).lines().enumerate() {
            for word in words {
                let Some(position) = line.find(word) else {
                    continue;
                };
                let rest = line.get(position + word.len()..).unwrap_or_default();
                let numbered = word == words[0]
                    && rest
                        .strip_prefix("(#")
                        .and_then(|rest| rest.split_once(')'))
                        .is_some_and(|(number, _)| {
                            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
                        });
                if !numbered {
                    offenders.push(format!(
                        "{}:{}: {}",
                        relative(&path),
                        number + 1,
                        line.trim()
                    ));
                }
            }
        }
    }
    assert_none(&offenders, "a loose end without an issue number");
}

#[test]
fn one_integration_binary_per_room() {
    let mut offenders = Vec::new();
    for entry in fs::read_dir(root().join("crates")).expect("the rooms") {
        let tests = entry.expect("a room").path().join("tests");
        let Ok(entries) = fs::read_dir(&tests) else {
            continue;
        };
        let binaries = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension().is_some_and(|extension| extension == "rs")
                    || path.join("main.rs").exists()
            })
            .count();
        if binaries > 1 {
            offenders.push(format!("{}: {binaries} binaries", relative(&tests)));
        }
    }
    assert_none(
        &offenders,
        "linking is what a small machine feels: one test binary per room",
    );
}

/// The words of a source line that are identifiers.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// Every item, variant and module that the sources of a room name in a definition.
fn definitions(room: &str) -> BTreeSet<String> {
    const KEYWORDS: &[&str] = &[
        "fn",
        "struct",
        "enum",
        "trait",
        "type",
        "const",
        "static",
        "mod",
        "union",
        "macro_rules",
    ];
    let mut names = BTreeSet::new();
    for path in files(&root().join("crates").join(room).join("src"), "rs") {
        names.insert(
            path.file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        );
        if let Some(folder) = path.parent().and_then(Path::file_name) {
            names.insert(folder.to_string_lossy().into_owned());
        }
        for line in text(&path).lines() {
            let line = line.split("//").next().unwrap_or_default();
            let mut previous = "";
            for word in words(line) {
                if KEYWORDS.contains(&previous) {
                    names.insert(word.to_owned());
                }
                previous = word;
            }
            // A variant of an enum stands alone at the start of its line.
            let trimmed = line.trim();
            if trimmed.starts_with(|c: char| c.is_ascii_uppercase())
                && let Some(name) = words(trimmed).next()
            {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

/// The `room::path::item` names that a document writes in backticks.
fn code_paths(document: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for line in document.lines() {
        for span in line.split('`').skip(1).step_by(2) {
            let span = span
                .split(['(', '<', ' ', '{', '!'])
                .next()
                .unwrap_or_default();
            let is_path = span.contains("::")
                && span.split("::").all(|part| {
                    !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_')
                });
            if is_path {
                paths.insert(span.to_owned());
            }
        }
    }
    paths
}

#[test]
fn every_function_that_the_architecture_names_exists() {
    let document = root().join("ARCHITECTURE.md");
    if !document.exists() {
        return;
    }
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut offenders = Vec::new();
    for path in code_paths(&text(&document)) {
        let (room, rest) = path.split_once("::").expect("a path has two parts");
        let room = room.strip_prefix("flux_").unwrap_or(room);
        if !root().join("crates").join(room).exists() {
            // A path of the standard library or of a dependency; none of our rooms has its name.
            continue;
        }
        let names = known
            .entry(room.to_owned())
            .or_insert_with(|| definitions(room));
        for part in rest.split("::") {
            if !names.contains(part) {
                offenders.push(format!("{path}: no `{part}` in crates/{room}/src"));
            }
        }
    }
    assert_none(&offenders, "ARCHITECTURE.md names what does not exist");
}

/// The shell blocks of a document: their info string and text.
fn shell_blocks(document: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in document.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((info.trim().to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, body)), None) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks.retain(|(info, _)| {
        matches!(
            info.split_whitespace().next(),
            Some("sh" | "bash" | "shell" | "console")
        )
    });
    blocks
}

#[test]
fn every_command_of_the_readme_is_run_by_the_suite() {
    let readme = root().join("README.md");
    if !readme.exists() {
        return;
    }
    let blocks = shell_blocks(&text(&readme));
    let mut offenders = Vec::new();
    for (info, body) in &blocks {
        for line in body
            .lines()
            .filter(|_| !BLOCKS_RUN.contains(&info.as_str()))
        {
            if !COMMANDS_NOT_RUN.contains(&line.trim()) {
                offenders.push(line.to_owned());
            }
        }
    }
    assert_none(
        &offenders,
        "a README command outside of a block that tests run",
    );

    let translation = root().join("README.zh-CN.md");
    if translation.exists() {
        let translated = shell_blocks(&text(&translation));
        for marked in BLOCKS_RUN {
            assert_eq!(
                commands(&blocks, marked),
                commands(&translated, marked),
                "README.zh-CN.md runs other commands than README.md in `{marked}`"
            );
        }
    }
    // The stack needs a Docker daemon, so `deploy/test-compose` runs its commands, from the page
    // that begins with them.
    let stack = commands(
        &shell_blocks(&text(&root().join("docs/compose.md"))),
        "sh test",
    );
    let quick_start = commands(&blocks, "sh compose");
    assert_eq!(
        stack.get(..quick_start.len()),
        Some(quick_start.as_slice()),
        "docs/compose.md does not begin with the `sh compose` of README.md"
    );
}

/// The commands of the blocks so marked, without comments.
fn commands(blocks: &[(String, String)], marked: &str) -> Vec<String> {
    blocks
        .iter()
        .filter(|(info, _)| info == marked)
        .flat_map(|(_, body)| body.lines())
        .map(|line| line.split(" # ").next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}
