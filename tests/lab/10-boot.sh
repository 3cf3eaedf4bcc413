# proves: Linux starts by PVH and as a bzImage, on ordinary and huge pages, finds the topology, ACPI and memory types it was given, resets and powers off.
# kernels: debian
# timeout: 600
. /share/box/lib.sh

cat >/run/boot.yaml <<END
version: 1
vms:
  pvh:
    cpus: {count: 3}
    memory: 192MiB
    on-reset: restart
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
  bzimage:
    cpus: {count: 4, sockets: 2, threads: 2}
    memory: {size: 256MiB, hugepages: 2MiB}
    on-reset: restart
    boot: {kernel: $GUEST_BZIMAGE, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent reboot=k"}
END

# ups NAME NUMBER: it has come to user space so many times.
ups() { [ "$(grep -c '@@up' "$LAB_OUT/$1.console")" -ge "$2" ]; }

# said NAME PATTERN: the lines of its kernel's log. Sifted there, for each byte on the console is an exit.
said() { guest_run "$1" "dmesg | grep -iE '$2'" 60; }

# sees NAME: what its kernel said has nothing to complain about, and all of ACPI and PAT is in use.
sees() {
    is "nothing to complain about" "$(said "$1" 'firmware bug|acpi.*(error|warning)|BUG:|WARNING:')" ""
    like "native hot-plug is the guest's" "$(said "$1" 'OS now controls')" '\[PCIeHotplug PME PCIeCapability\]'
    like "ECAM is in use" "$(said "$1" 'PCI: ECAM')" 'mem 0xe0000000-0xefffffff\] reserved'
    like "PAT is on" "$(said "$1" 'PAT: Conf')" 'WB  WC'
    like "the SCI is level-triggered" "$(guest_run "$1" 'grep acpi /proc/interrupts')" '9-fasteoi *acpi'
}

cat_topology='for c in /sys/devices/system/cpu/cpu[0-9]*/topology; do echo $(cat $c/physical_package_id $c/core_id $c/thread_siblings_list); done'

guest_start pvh /run/boot.yaml
check "a PVH kernel comes up" guest_up pvh 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/pvh.err")"
is "it has three cores" "$(guest_run pvh "$cat_topology")" "0 0 0
0 1 1
0 2 2"
long=$(head -c 1000 /dev/zero | tr '\0' x)
typed() { for _ in 1 2 3 4 5 6 7 8 9 10; do guest_run pvh "printf %s $long | wc -c" 20; done; }
is "ten lines of a thousand characters arrive whole" "$(typed | grep -c '^1000$')" 10
sees pvh
guest_run pvh 'reboot -f' 1 >/dev/null
check "it comes up again after a reset" retry 150 ups pvh 2
is "with all its processors" "$(guest_run pvh nproc)" 3
guest_run pvh 'poweroff -f' 1 >/dev/null
is "it powers off" "$(guest_wait pvh 30)" 0

echo 160 >/proc/sys/vm/nr_hugepages
is "there are huge pages" "$(cat /proc/sys/vm/nr_hugepages)" 160
guest_start bzimage /run/boot.yaml
check "a bzImage comes up" guest_up bzimage 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/bzimage.err")"
more "its memory is of huge pages" "$(awk '/HugePages_Total/ { t = $2 } /HugePages_Free/ { print t - $2 }' /proc/meminfo)" 40
is "it has two sockets, each a core of two threads" "$(guest_run bzimage "$cat_topology")" "0 0 0-1
0 0 0-1
1 0 2-3
1 0 2-3"
sees bzimage
guest_run bzimage 'reboot -f' 1 >/dev/null
check "it comes up again after a reset by the keyboard controller" retry 150 ups bzimage 2
guest_run bzimage 'poweroff -f' 1 >/dev/null
is "it powers off" "$(guest_wait bzimage 30)" 0
echo 0 >/proc/sys/vm/nr_hugepages
