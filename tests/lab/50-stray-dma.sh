# proves: A guest's device cannot reach memory that is not the guest's: the IOMMU stops it, nothing is read or written, and Throughway says so.
# kernels: debian iommufd
# timeout: 200
. /share/box/lib.sh

edu=$(bdf_of edu)
cat >/tmp/edu.yaml <<E
version: 1
devices:
  edu: {match: {address: "$edu"}}
vms:
  stray:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet memmap=1M\$0x6000000 lab.agent"}
    pci: {edu: {device: edu}}
E
check "the guest starts" guest_start stray /tmp/edu.yaml
check "it comes up" guest_up stray || bail "without it nothing follows" "$(tail -n 5 "$LAB_OUT/stray.err")"

# edu's registers (QEMU, docs/specs/edu.rst): 0x80 source, 0x88 destination, 0x90 count, 0x98 command (1 start, 2 from the device to memory).
# Its own buffer of 4096 bytes is at 0x40000 of its own addresses.
guest_run stray 'echo on >/sys/bus/pci/devices/0000:01:00.0/power/control; setpci -s 01:00.0 COMMAND=0006' >/dev/null
bar=$(guest_run stray 'head -n 1 /sys/bus/pci/devices/0000:01:00.0/resource' | cut -d' ' -f1)
like "the device has an address in the guest" "$bar" '^0x[0-9a-f]*[1-9a-f]'
reg() { printf '0x%x' $((bar + $1)); }
is "it is edu" "$(guest_run stray "busybox devmem $(reg 0) 32")" 0x010000ED
transfer() { # SOURCE DESTINATION COMMAND
    guest_run stray "busybox devmem $(reg 0x80) 64 $1; busybox devmem $(reg 0x88) 64 $2; busybox devmem $(reg 0x90) 64 16; busybox devmem $(reg 0x98) 64 $3; sleep 1" 20 >/dev/null
}

# Inside guest RAM it works: from memory to the device and from there to other memory. One of its MiB
# the guest's kernel leaves alone: that is for us by /dev/mem.
guest_run stray 'busybox devmem 0x6000000 64 0x1122334455667788; busybox devmem 0x6001000 64 0' >/dev/null
transfer 0x6000000 0x40000 1
transfer 0x40000 0x6001000 3
is "DMA within guest RAM works" "$(guest_run stray 'busybox devmem 0x6001000 64')" 0x1122334455667788

# The box's own ACPI code lies in its memory, far beyond the guest's 192 MiB, and can be read back there.
dsdt=0x$(dmesg | sed -n 's/.*ACPI: DSDT 0x\([0-9A-F]*\) .*/\1/p')
page=$(printf '0x%x' $((dsdt & ~0xfff)))
sum() { md5sum </sys/firmware/acpi/tables/DSDT; }
before=$(sum)
dmesg -c >/dev/null
transfer 0x40000 "$dsdt" 3
check "the box reports a fault of its IOMMU" retry 5 sh -c 'dmesg | grep -q "DMAR.*fault addr"'
dmesg >"$LAB_OUT/fault"
like "at that address" "$(cat "$LAB_OUT/fault")" "fault addr $page"
is "the box's memory is untouched" "$(sum)" "$before"
transfer "$dsdt" 0x40000 1
transfer 0x40000 0x6001000 3
read=$(guest_run stray 'busybox devmem 0x6001000 64')
case $read in
*54445344) not_ok "and cannot be read either" "the guest has read the table's signature: $read" ;;
0x*) ok "and cannot be read either (the device got $read)" ;;
*) not_ok "and cannot be read either" "$read" ;;
esac
check "Throughway says so in its log" retry 5 grep -q "$edu.*$page" "$LAB_OUT/stray.err"
guest_run stray 'poweroff -f' 1 >/dev/null
is "the guest powers off" "$(guest_wait stray 30)" 0
