# proves: What fio was told is durable is there, each byte, after the VMM was killed while it wrote, raw and qcow2; the qcow2 image is sound to qemu-img.
# kernels: debian
# suite: guest
# timeout: 600
. /share/box/lib.sh

peer_mount
libraries=/sysroot/usr/lib/x86_64-linux-gnu
in_sysroot() {
    program=$1
    shift
    $libraries/ld-linux-x86-64.so.2 --library-path "$libraries:/sysroot/usr/lib:$libraries/ceph" "/sysroot/usr/bin/$program" "$@"
}

# fio and what it needs on a CD. The job is written by a script: region N is 1 MiB at N MiB, written
# at random and with many writes under way, then flushed, and only then its number is said.
mkdir -p /run/tools/lib
cp /sysroot/usr/bin/fio /run/tools/
$libraries/ld-linux-x86-64.so.2 --library-path "$libraries:/sysroot/usr/lib:$libraries/ceph" --list /sysroot/usr/bin/fio |
    sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u | while read -r library; do cp -L "$library" /run/tools/lib/; done
cat >/run/tools/work.sh <<'END'
# write FORMAT DEVICE FROM TO | verify FORMAT DEVICE NUMBER...
how=$1 format=$2 device=$3
shift 3
# fio leaves files where it runs.
mkdir -p "/tmp/$format" && cd "/tmp/$format" || exit 1
{
    echo '[global]'
    echo "filename=$device"
    for line in size=1m bs=4k rw=randwrite direct=1 ioengine=libaio iodepth=16 thread=1 verify=crc32c verify_fatal=1 disk_util=0 end_fsync=1; do echo "$line"; done
    if [ "$how" = verify ]; then echo verify_only=1; numbers=$*; else echo do_verify=0; numbers=$(seq "$1" "$2"); fi
    for number in $numbers; do
        printf '[r%s]\nstonewall\noffset=%sm\nrandseed=%s\n' "$number" "$number" "$number"
        [ "$how" = verify ] || printf 'exec_postrun=(echo "durable %s %s" >/dev/ttyS0)\n' "$format" "$number"
    done
} >job
LD_LIBRARY_PATH=/tmp/tools/lib /tmp/tools/fio job >fio.log 2>&1
status=$?
[ $status = 0 ] || tail -n 8 fio.log
exit $status
END
in_sysroot genisoimage -quiet -R -o /run/tools.iso /run/tools 2>/run/genisoimage || bail "a CD is made" "$(tail -n 3 /run/genisoimage)"

# Both disks are the same guest's: its starts are most of the time. It has one processor: on a busy machine the emulator now and
# then forgets the timer of a second one.
formats='raw qcow2'
device_of() { [ "$1" = raw ] && echo /dev/vda || echo /dev/vdb; }
regions() { tr -d '\r' <"$LAB_OUT/$1.console" | sed -n "s/^durable $2 \([0-9]*\)$/\1/p"; }
has_regions() { [ "$(regions "$1" "$2" | wc -l)" -ge "$3" ]; }
durable() { tr '\n' ' ' <"/run/durable.$1"; }

# life NUMBER: the guest comes up another time and verifies all that was said before.
life() {
    name=life$1
    cat >"/run/$name.yaml" <<END
version: 1
vms:
  $name:
    cpus: 1
    memory: 256MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
    disks:
      one: {path: /run/disk.raw, format: raw}
      other: {path: /run/disk.qcow2, format: qcow2}
      tools: {path: /run/tools.iso, device: cdrom}
END
    guest_spawn "$name" throughway -v run "/run/$name.yaml" --vm "$name"
    check "life $1: the guest comes up" guest_up "$name" 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/$name.err")"
    guest_run "$name" 'mkdir -p /tmp/tools && mount -t iso9660 -o ro /dev/sr0 /tmp/tools' || bail "the CD with fio is mounted"
    for format in $formats; do
        [ ! -s "/run/durable.$format" ] || check "life $1: all that was durable is there in the $format image: $(durable $format | wc -w) MiB" \
            guest_run "$name" "sh /tmp/tools/work.sh verify $format $(device_of $format) $(durable $format)" 120
    done
}

for format in $formats; do
    throughway image create "/run/disk.$format" 64MiB >/dev/null || bail "an image is made"
    : >"/run/durable.$format"
done
for round in 1 2; do
    life "$round"
    # In the background of the guest: what is said on the console is waited for here.
    for format in $formats; do
        guest_run "$name" "(sh /tmp/tools/work.sh write $format $(device_of $format) $((round * 30 - 29)) $((round * 30)) >/tmp/write.$format 2>&1 &)" 10
    done
    for format in $formats; do
        check "life $round: some is durable in the $format image" retry 120 has_regions "$name" $format $((round + 1))
    done
    sleep 0.$((round * 3))
    guest_running "$name" && running=yes || running=no
    guest_kill "$name"
    is "life $round: it was killed while it ran" "$running" yes
    for format in $formats; do
        regions "$name" $format >>"/run/durable.$format"
        if [ "$(regions "$name" $format | wc -l)" -lt 30 ]; then ok "in the midst of its writes to the $format image"; else not_ok "in the midst of its writes to the $format image"; fi
    done
    in_sysroot qemu-img check /run/disk.qcow2 >/run/check 2>&1
    status=$?
    # 3 is clusters that nothing refers to: waste, no error.
    if [ $status = 0 ] || [ $status = 3 ]; then ok "qemu-img finds no error"; else not_ok "qemu-img finds no error" "$(tail -n 3 /run/check | tr '\n' ' ')"; fi
done
life 3
said=$(cat "$LAB_OUT/$name.err")
like "how the raw image is served is said" "$said" "disk one: .*io_uring in use"
like "and how the qcow2 image is" "$said" "disk other: .*one by one"
guest_run "$name" 'poweroff -f' 1 >/dev/null
is "the guest powers off" "$(guest_wait "$name" 30)" 0
