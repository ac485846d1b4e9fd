//! The properties of the fuzz targets hold for every file of their corpora, earlier findings included. `make fuzz` looks for more.

#[path = "../../fuzz/src/lib.rs"]
mod properties;

use std::path::Path;

type Property = fn(&[u8]);

const TARGETS: [(&str, Property); 13] = [
    ("batch", properties::batch),
    ("answer", properties::answer),
    ("freshness", properties::freshness),
    ("signature", properties::signature),
    ("config", properties::config),
    ("cache_control", properties::cache_control),
    ("admin", properties::admin),
    ("connection", properties::connection),
    ("laws", properties::laws),
    ("shared", properties::shared),
    ("description", properties::description),
    ("recorded", properties::recorded),
    ("identity", properties::identity),
];

#[test]
fn every_corpus_holds() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, property) in TARGETS {
        assert!(fuzz.join("fuzz_targets").join(name).with_extension("rs").is_file(), "{name}");
        let mut count = 0;
        for file in std::fs::read_dir(fuzz.join("corpus").join(name)).expect(name) {
            let path = file.unwrap().path();
            println!("{}", path.display()); // Shown if it fails.
            property(&std::fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
    }
    let targets = std::fs::read_dir(fuzz.join("fuzz_targets")).unwrap().count();
    assert_eq!(targets, TARGETS.len(), "every target is replayed here");
}
