//! The image as one file: an OCI image layout that is also what `docker save` writes.
//!
//! containerd and newer Docker read index.json, older Docker, Podman and crane manifest.json; both lead to the same
//! configuration and layer.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder, SCHEMA_VERSION,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{About, NAME, VERSION, sha256};

/// Nobody: the number that distroless images use.
const USER: &str = "65532:65532";
/// The picker's for Envoy, health and metrics.
const PORTS: [&str; 3] = ["9002/tcp", "9003/tcp", "9090/tcp"];

/// The archive of an image with nothing but the program.
///
/// # Errors
/// None that input brings about.
pub(super) fn archive(about: &About, program: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut files = Files::default();
    let layer = tar(&[(NAME, program, 0o755)], about)?;
    let layer = files.blob(MediaType::ImageLayer, layer)?;
    let config = files.blob(MediaType::ImageConfig, config(about, &layer)?)?;
    let image = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config.clone())
        .layers([layer.clone()])
        .build()?;
    let mut image = files.blob(MediaType::ImageManifest, sorted(&image)?)?;
    image.set_platform(Some(PlatformBuilder::default().architecture(Arch::Amd64).os(Os::Linux).build()?));
    image.set_annotations(Some(HashMap::from([
        // What containerd calls it, which is how a pod's `image: pointsman:VERSION` finds it.
        ("io.containerd.image.name".to_owned(), format!("docker.io/library/{NAME}:{VERSION}")),
        ("org.opencontainers.image.ref.name".to_owned(), VERSION.to_owned()),
    ])));
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests([image])
        .build()?;
    files.add("index.json", sorted(&index)?);
    files.add("oci-layout", sorted(&json!({ "imageLayoutVersion": "1.0.0" }))?);
    let docker = json!([{
        "Config": path(&config),
        "RepoTags": [format!("{NAME}:{VERSION}")],
        "Layers": [path(&layer)],
    }]);
    files.add("manifest.json", sorted(&docker)?);
    let entries: Vec<_> =
        files.0.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice(), 0o644)).collect();
    tar(&entries, about)
}

/// How the program is started, and what it is.
fn config(about: &About, layer: &Descriptor) -> anyhow::Result<Vec<u8>> {
    let created = about.created.to_string();
    let labels = [
        ("title", NAME),
        ("version", VERSION),
        ("revision", &about.revision),
        ("licenses", env!("CARGO_PKG_LICENSE")),
    ];
    let labels = labels.map(|(key, value)| (format!("org.opencontainers.image.{key}"), value.to_owned()));
    let start = ConfigBuilder::default()
        .user(USER)
        .entrypoint([format!("/{NAME}")])
        .exposed_ports(PORTS.map(str::to_owned))
        .working_dir("/")
        .labels(HashMap::from(labels))
        .build()?;
    let history = HistoryBuilder::default().created(&created).created_by("cargo xtask image").build()?;
    let config = ImageConfigurationBuilder::default()
        .created(created)
        .architecture(Arch::Amd64)
        .os(Os::Linux)
        .config(start)
        // The layer is not compressed, so its digest is that of its content.
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids([layer.digest().to_string()]).build()?)
        .history([history])
        .build()?;
    sorted(&config)
}

/// The archive's files by their paths.
#[derive(Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Adds what is called by its digest; how to refer to it.
    fn blob(&mut self, media_type: MediaType, bytes: Vec<u8>) -> anyhow::Result<Descriptor> {
        let digest = format!("sha256:{}", sha256(&bytes));
        let descriptor = DescriptorBuilder::default()
            .media_type(media_type)
            .digest(digest.parse::<oci_spec::image::Digest>()?)
            .size(bytes.len() as u64)
            .build()?;
        self.add(&path(&descriptor), bytes);
        Ok(descriptor)
    }

    fn add(&mut self, path: &str, bytes: Vec<u8>) {
        self.0.insert(path.to_owned(), bytes);
    }
}

/// Where a blob is in the archive.
fn path(blob: &Descriptor) -> String {
    format!("blobs/sha256/{}", blob.digest().digest())
}

/// JSON with the members of every object in order, because the maps of [`oci_spec`] have none.
fn sorted(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut value: Value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}

/// A tar archive of files (path, content, mode) that root owns.
fn tar(files: &[(&str, &[u8], u32)], about: &About) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(about.mtime());
        header.set_uid(0);
        header.set_gid(0);
        archive
            .append_data(&mut header, path, *bytes)
            .with_context(|| format!("{path} does not fit into a tar"))?;
    }
    Ok(archive.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_makes_the_same_bytes() {
        let about = |second| About {
            revision: "0123".to_owned(),
            created: jiff::Timestamp::from_second(second).expect("a time"),
        };
        let first = archive(&about(0), b"program").expect("made");
        // Maps have another order each time.
        for _ in 0..8 {
            assert_eq!(archive(&about(0), b"program").expect("made"), first);
        }
        assert_ne!(archive(&about(1), b"program").expect("made"), first);
        assert_ne!(archive(&about(0), b"Program").expect("made"), first);
    }
}
