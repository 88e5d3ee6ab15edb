use std::io::Read as _;

use super::*;

fn image() -> Image {
    Image::new("divert.dev/example:1")
        .architecture("amd64")
        .entrypoint(&["/bin/app", "serve"])
        .env("PATH", "/bin")
        .user("65532")
        .text("/etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .link("/bin/sh", "busybox")
        .folder("/tmp", 0o1777)
}

/// The archive's files by path.
fn written(image: &Image, name: &str) -> (String, BTreeMap<String, Vec<u8>>) {
    let path = std::env::temp_dir().join(format!("divert-image-{}-{name}.tar", std::process::id()));
    let digest = image.write(&path).unwrap();
    let mut archive = tar::Archive::new(File::open(&path).unwrap());
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (path, bytes)
    });
    let files = files.collect();
    std::fs::remove_file(&path).unwrap();
    (digest, files)
}

fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap();
    let bytes = &files[&format!("blobs/{}", digest.replace(':', "/"))];
    assert_eq!(descriptor["size"], bytes.len());
    assert_eq!(Blob::new("", bytes.clone()).digest, digest, "a blob is stored by its digest");
    bytes
}

#[test]
fn every_blob_is_found_from_the_index() {
    let (digest, files) = written(&image(), "index");
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let descriptor = &index["manifests"][0];
    assert_eq!(descriptor["digest"], digest);
    assert_eq!(descriptor["annotations"]["io.containerd.image.name"], "divert.dev/example:1");
    let manifest: Value = serde_json::from_slice(blob(&files, descriptor)).unwrap();
    let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
    blob(&files, &manifest["layers"][0]);
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    assert_eq!(config["config"]["Entrypoint"], json!(["/bin/app", "serve"]));
    assert_eq!(config["config"]["User"], "65532");
    let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    assert!(files.contains_key(docker[0]["Config"].as_str().unwrap()));
    assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
}

#[test]
fn the_layer_has_each_folder_before_what_is_in_it() {
    let layer = layer::write(&image().entries).unwrap();
    let mut archive = tar::Archive::new(layer.as_slice());
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, 0));
        (entry.path().unwrap().to_string_lossy().into_owned(), header.mode().unwrap())
    });
    let entries: Vec<_> = entries.collect();
    let expected =
        [("bin/", 0o755), ("bin/sh", 0o777), ("etc/", 0o755), ("etc/passwd", 0o644), ("tmp/", 0o1777)];
    assert_eq!(entries, expected.map(|(path, mode)| (path.to_owned(), mode)));
}

#[test]
fn the_same_files_in_another_order_are_the_same_image() {
    let other = Image::new("divert.dev/example:1")
        .architecture("amd64")
        .user("65532")
        .env("PATH", "/bin")
        .folder("/tmp", 0o1777)
        .link("/bin/sh", "busybox")
        .entrypoint(&["/bin/app", "serve"])
        .text("/etc/passwd", "root:x:0:0::/:/bin/sh\n");
    assert_eq!(written(&image(), "one"), written(&other, "other"));
    // Also on every other machine, and with every later version of the crates that it is made with.
    let (digest, _) = written(&image(), "fixed");
    assert_eq!(digest, "sha256:4600903f21a3a85fc8cbce34dfc2a69df275bb73e9f845c804ed39a829233994");
    assert_ne!(written(&other.text("/etc/hosts", ""), "more").0, digest);
}

#[test]
fn a_path_that_leads_out_or_is_given_twice_is_refused() {
    for path in ["bin/app", "/bin/../app", "/", "", "/bin//app", "/bin/"] {
        let image = Image::new("divert.dev/example:1").text(path, "");
        assert!(matches!(layer::write(&image.entries), Err(Error::Path { .. })), "{path:?}");
    }
    let twice = image().text("/etc/passwd", "");
    assert!(matches!(layer::write(&twice.entries), Err(Error::Path { .. })));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let image = image().program("/bin/app", Path::new("/nowhere/app"));
    let error = image.write(Path::new("/nowhere/image.tar")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/app"), "{error}");
}
