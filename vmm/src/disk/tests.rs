use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const MIB: u64 = 1 << 20;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn make(path: &Path, format: Format, size: u64, backing: Option<(&str, Format)>) {
    let new = NewImage::begin(path).unwrap();
    match format {
        Format::Raw => drop(new.raw(size, Preallocate::Off).unwrap()),
        Format::Qcow2 => {
            let backing = backing.map(|(name, format)| (name.to_owned(), format));
            new.qcow2(size, 65536, backing, Preallocate::Off).unwrap().flush().unwrap();
        }
    }
    new.publish(false).unwrap();
}

fn open(path: &Path, format: Format, access: Access) -> Result<Box<dyn DiskImage>, Error> {
    Chain::open(path, format, &Rules::new(access))?.image()
}

fn why(result: Result<Box<dyn DiskImage>, Error>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

fn read(image: &dyn DiskImage, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    image.read_at(&mut bytes, offset).unwrap();
    bytes
}

fn findings(path: &Path) -> Findings {
    check(&File::open(path).unwrap(), &mut |_| {}).unwrap()
}

use std::fs::File;

#[test]
fn what_is_written_is_read_again_in_each_format() {
    let folder = folder();
    for format in [Format::Raw, Format::Qcow2] {
        let path = folder.path().join(format.name());
        make(&path, format, 8 * MIB, None);

        let image = open(&path, format, Access::Write).unwrap();
        image.write_at(&vec![0x5a; 100_000], 70_001).unwrap();
        image.write_at(&[0xa5; 512], 8 * MIB - 512).unwrap();
        image.write_zeroes(80_000, 10, false).unwrap();
        image.write_zeroes(128 << 10, 16 << 10, true).unwrap();
        image.flush().unwrap();
        assert!(image.write_at(&[1; 2], 8 * MIB - 1).is_err());
        assert!(image.write_zeroes(u64::MAX, 2, true).is_err());
        drop(image);

        let image = open(&path, format, Access::Read).unwrap();
        assert_eq!(image.size(), 8 * MIB);
        assert_eq!(read(&*image, 70_000, 3), [0, 0x5a, 0x5a]);
        assert_eq!(read(&*image, 79_999, 12), [0x5a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x5a]);
        assert_eq!(read(&*image, 128 << 10, 16 << 10), vec![0; 16 << 10]);
        assert_eq!(read(&*image, 170_000, 2), [0x5a, 0]);
        assert_eq!(read(&*image, 8 * MIB - 1, 3), [0xa5, 0, 0]);
        assert!(image.write_at(&[1], 0).is_err());
    }
    let found = findings(&folder.path().join("qcow2"));
    assert_eq!((found.errors, found.leaks), (0, 0), "{:?}", found.told);
    assert!(found.data_clusters >= 2);
}

#[test]
fn a_disk_reads_through_to_what_it_stands_on_and_leaves_it_alone() {
    let folder = folder();
    let (base, top) = (folder.path().join("base.raw"), folder.path().join("top.qcow2"));
    std::fs::write(&base, vec![7; 200_000]).unwrap();
    make(&top, Format::Qcow2, MIB, Some(("base.raw", Format::Raw)));

    let image = open(&top, Format::Qcow2, Access::Write).unwrap();
    image.write_at(&[9; 10], 100_000).unwrap();
    image.flush().unwrap();

    assert_eq!(read(&*image, 99_999, 12), [7, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 7]);
    assert_eq!(read(&*image, 199_999, 2), [7, 0]);
    assert_eq!(std::fs::read(&base).unwrap(), vec![7; 200_000]);
}

#[test]
fn a_grown_disk_does_not_show_more_of_what_it_stands_on() {
    let folder = folder();
    let (base, top) = (folder.path().join("base.raw"), folder.path().join("top.qcow2"));
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    make(&top, Format::Qcow2, 512 << 10, Some(("base.raw", Format::Raw)));

    let mut image = open(&top, Format::Qcow2, Access::Write).unwrap();
    image.resize(MIB).unwrap();
    image.flush().unwrap();

    assert_eq!(read(&*image, (512 << 10) - 1, 2), [7, 0]);
    drop(image);
    assert_eq!(findings(&top).errors, 0);
}

#[test]
fn past_the_page_cache_nothing_has_to_be_aligned() {
    let folder = folder();
    for format in [Format::Raw, Format::Qcow2] {
        let path = folder.path().join(format.name());
        make(&path, format, MIB, None);
        let rules = Rules { direct: true, ..Rules::new(Access::Write) };
        let image = Chain::open(&path, format, &rules).unwrap().image().unwrap();
        image.write_at(&[3; 1000], 1).unwrap();
        image.write_at(&[4; 512], 512).unwrap();
        image.flush().unwrap();
        assert_eq!(read(&*image, 0, 513), [&[0][..], &[3; 511], &[4]].concat());
        assert_eq!(read(&*image, 1000, 25), [vec![4; 24], vec![0]].concat());
    }
}

#[test]
fn who_writes_is_alone() {
    let folder = folder();
    let path = folder.path().join("a.raw");
    make(&path, Format::Raw, MIB, None);
    let in_use = |result: Result<Chain, Error>| matches!(result, Err(Error::InUse { .. }));
    let chain = |access| Chain::open(&path, Format::Raw, &Rules::new(access));

    let readers = [chain(Access::Read).unwrap(), chain(Access::Read).unwrap()];
    assert!(in_use(chain(Access::Write)));
    drop(readers);
    let writer = chain(Access::Write).unwrap();
    assert!(in_use(chain(Access::Read)) && in_use(chain(Access::Write)));
    // As an image it is held as well, and let go with it.
    let image = writer.image().unwrap();
    assert!(in_use(chain(Access::Read)));
    drop(image);
    chain(Access::Write).unwrap();
}

#[test]
fn a_base_that_somebody_writes_to_is_refused() {
    let folder = folder();
    let (base, top) = (folder.path().join("base.raw"), folder.path().join("top.qcow2"));
    make(&base, Format::Raw, MIB, None);
    make(&top, Format::Qcow2, MIB, Some(("base.raw", Format::Raw)));
    let _writer = Chain::open(&base, Format::Raw, &Rules::new(Access::Write)).unwrap();
    assert!(
        why(open(&top, Format::Qcow2, Access::Write)).contains("base.raw is in use by another guest or tool")
    );
}

#[test]
fn a_chain_that_is_a_loop_is_refused() {
    let folder = folder();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    make(&one, Format::Qcow2, MIB, Some(("two", Format::Qcow2)));
    make(&two, Format::Qcow2, MIB, Some(("one", Format::Qcow2)));
    assert!(why(open(&one, Format::Qcow2, Access::Write)).contains("chain of backing files is a loop"));
    make(&folder.path().join("self"), Format::Qcow2, MIB, Some(("self", Format::Qcow2)));
    assert!(why(open(&folder.path().join("self"), Format::Qcow2, Access::Read)).contains("a loop"));
}

#[test]
fn a_chain_has_an_end() {
    let folder = folder();
    let name = |index: usize| folder.path().join(format!("{index}"));
    make(&name(0), Format::Qcow2, MIB, None);
    for index in 1..=MOST_LAYERS {
        make(&name(index), Format::Qcow2, MIB, Some((&format!("{}", index - 1), Format::Qcow2)));
    }
    assert!(open(&name(MOST_LAYERS - 1), Format::Qcow2, Access::Read).is_ok());
    assert!(why(open(&name(MOST_LAYERS), Format::Qcow2, Access::Read)).contains("the most that are allowed"));
}

#[test]
fn backing_files_are_where_they_are_allowed() {
    let (folder, other) = (folder(), folder());
    let secret = other.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let top = |name: &str, base: &str| {
        let path = folder.path().join(name);
        make(&path, Format::Qcow2, MIB, Some((base, Format::Raw)));
        path
    };
    symlink(&secret, folder.path().join("link")).unwrap();
    let bases = [
        top("absolute", secret.to_str().unwrap()),
        top("dots", &format!("../{}/secret", other.path().file_name().unwrap().to_str().unwrap())),
        top("linked", "link"),
        top("away", "/nonexistent/one"),
    ];
    for path in &bases {
        assert!(
            why(open(path, Format::Qcow2, Access::Read)).contains("which is outside"),
            "{}",
            path.display()
        );
    }
    let rules = Rules { folders: vec![other.path().to_owned()], ..Rules::new(Access::Read) };
    assert!(Chain::open(&bases[0], Format::Qcow2, &rules).is_ok());
    for name in ["nbd:unix:/x", "json:{}", "fat:/etc"] {
        let path = folder.path().join(name.replace(['/', ':'], "-"));
        make(&path, Format::Qcow2, MIB, Some((name, Format::Raw)));
        assert!(why(open(&path, Format::Qcow2, Access::Read)).contains("not the path of a file"));
    }
}

#[test]
fn what_is_said_counts_and_not_what_is_there() {
    let folder = folder();
    let (raw, qcow2) = (folder.path().join("raw"), folder.path().join("qcow2"));
    make(&raw, Format::Raw, MIB, None);
    make(&qcow2, Format::Qcow2, 4 * MIB, None);
    assert!(
        why(open(&raw, Format::Qcow2, Access::Read))
            .ends_with("is not a qcow2 image: say `raw` if that is what it is")
    );
    let image = open(&qcow2, Format::Raw, Access::Read).unwrap();
    assert_eq!(read(&*image, 0, 4), header::MAGIC);
}

#[test]
fn what_is_no_disk_is_refused() {
    let folder = folder();
    assert!(
        why(open(folder.path(), Format::Raw, Access::Read)).ends_with("is neither a file nor a block device")
    );
    assert!(why(open(&folder.path().join("none"), Format::Raw, Access::Read)).contains("No such file"));
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(why(open(&pipe, Format::Raw, Access::Read)).ends_with("is neither a file nor a block device"));
}

#[test]
fn a_new_image_is_there_whole_or_not_at_all() {
    let folder = folder();
    let path = folder.path().join("a.qcow2");
    let names = || std::fs::read_dir(folder.path()).unwrap().count();

    let new = NewImage::begin(&path).unwrap();
    drop(new.qcow2(MIB, 65536, None, Preallocate::Off).unwrap());
    assert!(!path.exists());
    drop(new);
    assert_eq!(names(), 0);

    make(&path, Format::Qcow2, MIB, None);
    let before = std::fs::read(&path).unwrap();
    let new = NewImage::begin(&path).unwrap();
    drop(new.raw(MIB, Preallocate::Full).unwrap());
    assert!(new.publish(false).unwrap_err().to_string().contains("exists already"));
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let new = NewImage::begin(&path).unwrap();
    drop(new.raw(MIB, Preallocate::Full).unwrap());
    new.publish(true).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), vec![0; 1 << 20]);
    assert_eq!(names(), 1);
}

#[test]
fn damage_of_reference_counts_is_found() {
    let folder = folder();
    let path = folder.path().join("a.qcow2");
    make(&path, Format::Qcow2, MIB, None);
    let image = open(&path, Format::Qcow2, Access::Write).unwrap();
    image.write_at(&[1; 1000], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let block = word(word(48));

    // A count of what nobody refers to.
    let last = file.metadata().unwrap().len().div_ceil(65536);
    file.set_len((last + 1) * 65536).unwrap();
    file.write_all_at(&1_u16.to_be_bytes(), block + 2 * last).unwrap();
    assert_eq!((findings(&path).errors, findings(&path).leaks), (0, 1));
    // None of what is in use: the header.
    file.write_all_at(&0_u16.to_be_bytes(), block).unwrap();
    assert_eq!(findings(&path).errors, 1);
    assert!(findings(&path).told[0].contains("at 0x0 has 1 references and a count of 0"));
}

/// A small image with data, compressed nothing, and a place for damage in all of its metadata.
fn sample() -> &'static [u8] {
    static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SAMPLE.get_or_init(|| {
        let folder = folder();
        let path = folder.path().join("sample");
        let new = NewImage::begin(&path).unwrap();
        let image = new.qcow2(256 << 10, 512, None, Preallocate::Off).unwrap();
        for at in [0, 10_000, 100_000] {
            image.write_at(&[0x77; 3000], at).unwrap();
        }
        image.flush().unwrap();
        drop(image);
        new.publish(false).unwrap();
        std::fs::read(&path).unwrap()
    })
}

fn use_it(path: &PathBuf) {
    if let Ok(image) = open(path, Format::Qcow2, Access::Write) {
        let mut bytes = vec![0; 4096];
        for at in (0..image.size().min(1 << 20)).step_by(7919) {
            let _ = image.read_at(&mut bytes, at);
            let _ = image.extent(at);
        }
        for at in [0, 9000, 60_000, 200_000] {
            let _ = image.write_at(&bytes, at);
            let _ = image.write_zeroes(at, 2048, true);
            let _ = image.discard(at, 5000);
        }
        let _ = image.flush();
    }
    let _ = check(&File::open(path).unwrap(), &mut |_| {});
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is in the file: an answer, and no end of this process.
    #[test]
    fn damaged_metadata_are_survived(
        damage in proptest::collection::vec((0_usize..12_000, any::<u8>()), 1..6),
        header in proptest::collection::vec((0_usize..112, any::<u8>()), 0..2),
        length in 0_usize..40_000,
    ) {
        let folder = folder();
        let path = folder.path().join("damaged");
        let mut bytes = sample().to_vec();
        let end = bytes.len();
        for (at, value) in damage.into_iter().chain(header) {
            bytes[at % end] = value;
        }
        bytes.truncate(length.max(104));
        std::fs::write(&path, bytes).unwrap();
        use_it(&path);
    }

    #[test]
    fn any_header_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = folder();
        let path = folder.path().join("any");
        let mut image = b"QFI\xfb\0\0\0\x03".to_vec();
        image.extend(bytes);
        std::fs::write(&path, image).unwrap();
        use_it(&path);
    }
}
