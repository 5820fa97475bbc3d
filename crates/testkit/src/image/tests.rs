use std::io::Read;

use super::*;

fn entries(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let mut content = vec![];
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), (entry.header().mode().unwrap(), content))
    };
    archive.entries().unwrap().map(read).collect()
}

fn write(image: &Image, folder: &Path) -> Vec<u8> {
    let path = folder.join("image.tar");
    image.write(&path).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn the_archive_holds_the_files_and_every_digest_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("program");
    fs::write(&source, "content").unwrap();
    let image = Image::new("localhost/a:1")
        .file(&source, "/usr/bin/program", 0o755)
        .entrypoint(["/usr/bin/program", "run"])
        .label("k", "v");
    let archive = entries(&write(&image, folder.path()));

    for (name, (_, content)) in archive.iter().filter(|(name, _)| name.starts_with("blobs/")) {
        assert_eq!(format!("blobs/{}", digest(content).replace(':', "/")), *name);
    }
    let blob = |descriptor: &Value| {
        let (_, content) =
            &archive[&format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))];
        assert_eq!(descriptor["size"], content.len());
        content.clone()
    };
    let index: Value = serde_json::from_slice(&archive["index.json"].1).unwrap();
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/a:1");
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/program", "run"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Labels"], json!({"k": "v"}));
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);

    let layer = entries(&blob(&manifest["layers"][0]));
    let modes: Vec<_> = layer.iter().map(|(name, (mode, _))| (name.trim_end_matches('/'), *mode)).collect();
    assert_eq!(modes, [("tmp", 0o1777), ("usr", 0o755), ("usr/bin", 0o755), ("usr/bin/program", 0o755)]);
    assert_eq!(layer["usr/bin/program"].1, b"content");
}

#[test]
fn the_same_content_gives_the_same_bytes_wherever_and_whenever_it_was_written() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write_in = |folder: &Path, order: [&str; 2]| {
        let image = order.iter().fold(Image::new("localhost/a:1"), |image, name| {
            fs::write(folder.join(name), name).unwrap();
            image.file(folder.join(name), format!("/{name}"), 0o644)
        });
        write(&image, folder)
    };
    let first = write_in(one.path(), ["a", "b"]);
    fs::create_dir(two.path().join("elsewhere")).unwrap();
    assert_eq!(first, write_in(&two.path().join("elsewhere"), ["b", "a"]));
}

#[test]
fn a_dynamic_program_brings_its_loader_and_libraries() {
    let image = Image::new("localhost/a:1").with_libraries_of(Path::new("/bin/sh")).unwrap();
    let names: Vec<_> = image.files.keys().map(|path| path.display().to_string()).collect();
    assert!(names.iter().any(|name| name.contains("/libc.so")), "{names:?}");
    assert!(names.iter().any(|name| name.contains("/ld-")), "{names:?}");
}

#[test]
fn reads_what_ldd_prints() {
    let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\tlibgone.so.1 => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
    let found = |path: &str| Library::Found(path.into());
    assert_eq!(
        libraries(text),
        [
            found("/lib/x86_64-linux-gnu/libc.so.6"),
            Library::Missing("libgone.so.1".into()),
            found("/lib64/ld-linux-x86-64.so.2")
        ]
    );
    assert_eq!(libraries("\tnot a dynamic executable\n"), []);
    assert_eq!(libraries("\tstatically linked\n"), []);
}

#[test]
fn places_outside_the_root_are_refused() {
    for target in ["usr/bin/a", "/../etc/passwd", ""] {
        let error = Image::new("localhost/a:1")
            .file("/bin/sh", target, 0o755)
            .write(Path::new("/nonexistent"))
            .unwrap_err();
        assert!(matches!(error, ImageError::BadTarget { .. }), "{target}: {error}");
    }
}
