//! `throughway image info` and `throughway image check`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use vmm::disk::{self, Access, Format, Layer, Qcow2Header};

use super::{Exit, Failure, Folders, FormatArgument};
use crate::cli::check::print;

#[derive(Args)]
pub(super) struct Arguments {
    /// The image.
    file: PathBuf,
    /// What it is. Where it is not said, name and content must agree.
    #[arg(long, value_enum)]
    format: Option<FormatArgument>,
    #[command(flatten)]
    folders: Folders,
    /// As JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// A disk.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Disk {
    size: u64,
    layers: Vec<File>,
}

/// One file of it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    path: PathBuf,
    format: Format,
    allocated: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    qcow2: Option<Qcow2>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Qcow2 {
    version: u32,
    size: u64,
    cluster_size: u64,
    refcount_bits: u32,
    snapshots: u32,
    dirty: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_format: Option<String>,
}

pub(super) fn info(arguments: &Arguments) -> Result<Exit, Failure> {
    let format = super::of_existing(&arguments.file, arguments.format)?;
    let chain = super::open(&arguments.file, format, &arguments.folders.rules(Access::Read))?;
    let layers = chain.layers().iter().map(look).collect::<anyhow::Result<Vec<_>>>()?;
    let disk = Disk { size: chain.image()?.size(), layers };
    if arguments.json {
        print(&serde_json::to_string_pretty(&disk).context("Writing JSON")?);
    } else {
        print(text(&disk).trim_end());
    }
    Ok(Exit::Success)
}

fn look(layer: &Layer) -> anyhow::Result<File> {
    let looking = || format!("Looking at {}", layer.path.display());
    let metadata = layer.file.metadata().with_context(looking)?;
    let qcow2 = match layer.format {
        Format::Raw => None,
        Format::Qcow2 => Some(Qcow2::from(Qcow2Header::read(&layer.file).with_context(looking)?)),
    };
    let allocated = metadata.blocks().saturating_mul(512);
    Ok(File { path: layer.path.clone(), format: layer.format, allocated, qcow2 })
}

impl From<Qcow2Header> for Qcow2 {
    fn from(header: Qcow2Header) -> Self {
        Self {
            version: header.version,
            size: header.size,
            cluster_size: header.cluster_size(),
            refcount_bits: 1 << header.refcount_order.min(6),
            snapshots: header.snapshots,
            dirty: header.dirty,
            backing_file: header.backing_file,
            backing_format: header.backing_format,
        }
    }
}

fn text(disk: &Disk) -> String {
    let mut text = format!("disk of {}\n", super::size_text(disk.size));
    for (file, index) in disk.layers.iter().zip(0..) {
        let on = if index == 0 { "" } else { "  on " };
        let allocated = super::size_text(file.allocated);
        text += &format!("{on}{}: {}, takes {allocated}", file.path.display(), file.format.name());
        if let Some(qcow2) = &file.qcow2 {
            let cluster = crate::config::Size(qcow2.cluster_size);
            text += &format!(", version {}, clusters of {cluster}", qcow2.version);
            if qcow2.snapshots > 0 {
                text += &format!(", {} internal snapshots", qcow2.snapshots);
            }
            if qcow2.dirty {
                text += ", not closed cleanly";
            }
        }
        text.push('\n');
    }
    text
}

/// What `check` found.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Checked {
    path: PathBuf,
    errors: u64,
    leaks: u64,
    data_clusters: u64,
    compressed_clusters: u64,
    first_errors: Vec<String>,
}

pub(super) fn check(arguments: &Arguments) -> Result<Exit, Failure> {
    let path = &arguments.file;
    if super::of_existing(path, arguments.format)? == Format::Raw {
        return Err(super::refused(format!("{} is raw, and has no metadata to check", path.display())));
    }
    let chain = super::open(path, Format::Qcow2, &arguments.folders.rules(Access::Read))?;
    let mut all = Vec::new();
    for layer in chain.layers().iter().filter(|layer| layer.format == Format::Qcow2) {
        all.push(check_layer(layer)?);
    }
    let errors = all.iter().any(|checked| checked.errors > 0);
    if arguments.json {
        print(&serde_json::to_string_pretty(&all).context("Writing JSON")?);
    } else {
        all.iter().for_each(say);
    }
    Ok(if errors { Exit::BadInput } else { Exit::Success })
}

fn check_layer(layer: &Layer) -> Result<Checked, Failure> {
    let bar = bar(1000, "Checking", &layer.path, "{percent}%");
    let findings = disk::check(&layer.file, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    let findings = findings.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => super::refused(format!("{} {error}", layer.path.display())),
        _ => Failure::Fault(anyhow::Error::new(error).context(format!("Reading {}", layer.path.display()))),
    })?;
    Ok(Checked {
        path: layer.path.clone(),
        errors: findings.errors,
        leaks: findings.leaks,
        data_clusters: findings.data_clusters,
        compressed_clusters: findings.compressed_clusters,
        first_errors: findings.told,
    })
}

fn say(checked: &Checked) {
    let path = checked.path.display();
    for error in &checked.first_errors {
        print(&format!("{path}: {error}"));
    }
    let clusters = checked.data_clusters;
    let leaks = match checked.leaks {
        0 => String::new(),
        leaks => format!("; {leaks} clusters are wasted, which is harmless"),
    };
    match checked.errors {
        0 => print(&format!("{path}: no errors, {clusters} clusters of data{leaks}")),
        errors => print(&format!(
            "{path}: {errors} errors, {clusters} clusters of data{leaks}; copy what can be read with throughway image convert, or repair it with qemu-img check -r all"
        )),
    }
}

/// A bar on standard error, where that is a terminal.
pub(super) fn bar(length: u64, what: &'static str, path: &Path, how_far: &str) -> ProgressBar {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bar = ProgressBar::new(length).with_prefix(what).with_message(name);
    let template = format!("{{prefix}} {{msg}} [{{bar:30}}] {how_far}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
