//! Dependencies: none needs a newer Rust than `rust-version`, no build script uses the network, and all can be vendored and
//! resolved offline. `deny.toml` covers licences, sources and duplicates.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Names that a build script with network access would contain.
const WAYS_OUT: [&str; 9] =
    ["std::net", "TcpStream", "UdpSocket", "\"curl\"", "\"wget\"", "\"git\"", "reqwest", "ureq", "https_proxy"];

fn cargo(arguments: &[&str], directory: &Path) -> String {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let output = Command::new(cargo).args(arguments).current_dir(directory).output();
    let output = output.expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The packages that are built for Linux.
fn packages() -> Vec<Value> {
    let platform = "--filter-platform=x86_64-unknown-linux-gnu";
    let arguments = ["metadata", "--format-version=1", "--locked", "--all-features", platform];
    let metadata: Value = serde_json::from_str(&cargo(&arguments, root())).unwrap();
    let resolved: BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().filter(|package| resolved.contains(package["id"].as_str().unwrap())).cloned().collect()
}

fn version(text: &str) -> Vec<u32> {
    let mut parts: Vec<u32> = text.split('.').map(|part| part.parse().unwrap()).collect();
    parts.resize(3, 0);
    parts
}

#[test]
fn no_dependency_needs_a_newer_rust_than_declared() {
    let packages = packages();
    let stated = |package: &Value| package["rust_version"].as_str().map(version);
    let own = packages.iter().find(|package| package["name"] == "sidelink").and_then(stated).expect("rust-version");
    for package in &packages {
        let needed = stated(package).unwrap_or_default();
        assert!(needed <= own, "{} needs Rust {needed:?}", package["id"]);
    }
}

#[test]
fn no_build_script_uses_the_network() {
    let mut scripts = 0;
    for package in &packages() {
        for target in package["targets"].as_array().unwrap() {
            if target["kind"][0] != "custom-build" {
                continue;
            }
            scripts += 1;
            let path = target["src_path"].as_str().unwrap();
            let text = std::fs::read_to_string(path).unwrap();
            for way in WAYS_OUT {
                assert!(!text.contains(way), "{path} names {way}: look at what for");
            }
        }
    }
    assert!(scripts > 0, "build scripts are no longer found");
}

#[test]
fn all_dependencies_can_be_vendored_and_resolved_offline() {
    let directory = tempfile::tempdir().unwrap();
    let vendor = directory.path().join("vendor");
    let configuration = cargo(&["vendor", "--locked", "--versioned-dirs", vendor.to_str().unwrap()], root());
    for file in ["Cargo.toml", "Cargo.lock"] {
        std::fs::copy(root().join(file), directory.path().join(file)).unwrap();
    }
    for folder in ["src", "benches"] {
        std::os::unix::fs::symlink(root().join(folder), directory.path().join(folder)).unwrap();
    }
    for folder in ["tests", "examples"] {
        let _ = std::os::unix::fs::symlink(root().join(folder), directory.path().join(folder));
    }
    std::fs::create_dir(directory.path().join(".cargo")).unwrap();
    std::fs::write(directory.path().join(".cargo/config.toml"), configuration).unwrap();
    let metadata = cargo(&["metadata", "--format-version=1", "--frozen", "--offline"], directory.path());
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let manifest = package["manifest_path"].as_str().unwrap();
        let vendored = Path::new(manifest).starts_with(std::fs::canonicalize(&vendor).unwrap());
        assert!(vendored || package["name"] == "sidelink", "{manifest}");
    }
}
