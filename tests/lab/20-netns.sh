# proves: The tests of links hold on this kernel, which has every kind of link: VLANs, bonds, bridges with VLAN filtering.
# examples: tests/netns
# timeout: 240
. /share/box/lib.sh

mkdir -p /tmp/kernel
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap,ro kernel /tmp/kernel 2>/dev/null &&
    modprobe -qa -d /tmp/kernel bonding dummy nf_tables nft_chain_nat nft_masq nft_ct
# A test that skips itself fails here: this kernel lacks nothing.
REQUIRE=netns THROUGHWAY_TEST_WHOLE_KERNEL=1 RUST_BACKTRACE=0 /share/bin/netns --test-threads=2 >"$LAB_OUT/netns.log" 2>&1
status=$?
tail -n 60 "$LAB_OUT/netns.log"
is "every test of links passes" "$status" 0
like "they ran" "$(cat "$LAB_OUT/netns.log")" "test stacks::a_bond_has_each_of_its_modes_with_its_ports_in_it ... ok"
umount /tmp/kernel 2>/dev/null
exit 0
