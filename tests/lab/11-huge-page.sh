# proves: A page of 1 GiB is set aside by `apply`, all of a guest's memory is that page, and both are given back.
# kernels: debian
# boot: own
# timeout: 300
. /share/box/lib.sh

pages=/sys/kernel/mm/hugepages/hugepages-1048576kB
cat >/run/huge.yaml <<END
version: 1
host: {hugepages: {1GiB: 1}}
vms:
  huge:
    memory: {size: 1GiB, hugepages: 1GiB}
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
  more:
    memory: {size: 2GiB, hugepages: 1GiB}
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
END
check "apply sets the page aside" throughway apply /run/huge.yaml --state-dir /run/state || bail "without it nothing follows" "$(throughway apply /run/huge.yaml --state-dir /run/state 2>&1 | tail -n 3)"
is "it is there" "$(cat $pages/nr_hugepages) $(cat $pages/free_hugepages)" "1 1"
like "a guest that wants two is refused" "$(throughway run /run/huge.yaml --vm more 2>&1)" 'huge pages of 1GiB, and the host has 1'
guest_start huge /run/huge.yaml
check "the guest comes up" guest_up huge 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/huge.err")"
is "the page is its memory" "$(cat $pages/free_hugepages)" 0
more "which is all there, in MiB" "$(guest_run huge "awk '/MemTotal/ { print int(\$2 / 1024) }' /proc/meminfo")" 900
guest_run huge 'poweroff -f' 1 >/dev/null
is "it powers off" "$(guest_wait huge 30)" 0
is "and the page is free again" "$(cat $pages/free_hugepages)" 1
check "a rollback gives it back" throughway rollback --state-dir /run/state
is "to the box" "$(cat $pages/nr_hugepages)" 0
