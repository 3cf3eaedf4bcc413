use super::*;

#[test]
fn a_bar_of_256_gib_takes_no_memory() {
    let fake = Fake::new().bar(0, 256 << 30, 0xc);
    let bar = RegionIndex::Bar(0);
    let last = (256 << 30) - 4;
    fake.write(bar, last, &[1, 2, 3, 4]).unwrap();
    let mut data = [0; 4];
    fake.read(bar, last, &mut data).unwrap();
    assert_eq!((data, fake.memory_byte(0, last + 1)), ([1, 2, 3, 4], 2));
    let status = rustix::fs::fstat(&fake.memory).unwrap();
    assert!(status.st_blocks * 512 < 1 << 20);
    fake.reset().unwrap();
    assert_eq!(fake.memory_byte(0, last), 0);
}

#[test]
fn a_function_that_lost_its_link_reads_all_ones_without_an_error() {
    let fake = Fake::nic();
    fake.lose_link();
    let mut id = [0; 4];
    fake.read(RegionIndex::Config, 0, &mut id).unwrap();
    assert_eq!(id, [0xff; 4]);
}

#[test]
fn parts_that_are_not_sparse_areas_cannot_be_mapped() {
    let fake = Fake::new().bar(0, 0x4000, 4).sparse(0, &[(0, 0x1000), (0x3000, 0x1000)]);
    let source = |offset, size| fake.mmap_source(RegionIndex::Bar(0), MmapArea { offset, size });
    assert!(source(0x3000, 0x1000).is_ok());
    assert!(source(0, 0x2000).is_err() && source(u64::MAX, 2).is_err());
}
