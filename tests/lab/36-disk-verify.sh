# proves: What fio was told is durable is there, each byte, after the VMM was killed while it wrote, raw and qcow2; the qcow2 image is sound to qemu-img.
# kernels: debian
# gates: no
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
# write FROM TO | verify NUMBER...
how=$1
shift
{
    echo '[global]'
    echo 'filename=/dev/vda'
    for line in size=1m bs=4k rw=randwrite direct=1 ioengine=libaio iodepth=16 thread=1 verify=crc32c verify_fatal=1 disk_util=0 end_fsync=1; do echo "$line"; done
    if [ "$how" = verify ]; then echo verify_only=1; numbers=$*; else echo do_verify=0; numbers=$(seq "$1" "$2"); fi
    for number in $numbers; do
        printf '[r%s]\nstonewall\noffset=%sm\nrandseed=%s\n' "$number" "$number" "$number"
        [ "$how" = verify ] || printf 'exec_postrun=(echo "durable %s" >/dev/ttyS0)\n' "$number"
    done
} >/tmp/job
cd /tmp && LD_LIBRARY_PATH=/tmp/tools/lib /tmp/tools/fio job >/tmp/fio.log 2>&1
status=$?
[ $status = 0 ] || tail -n 8 /tmp/fio.log
exit $status
END
in_sysroot genisoimage -quiet -R -o /run/tools.iso /run/tools 2>/run/genisoimage || bail "a CD is made" "$(tail -n 3 /run/genisoimage)"

regions() { tr -d '\r' <"$LAB_OUT/$1.console" | sed -n 's/^durable \([0-9]*\)$/\1/p'; }
has_regions() { [ "$(regions "$1" | wc -l)" -ge "$2" ]; }

# life NAME N FORMAT: the guest of that name comes up for the Nth time and verifies all that was said before.
life() {
    cat >"/run/$1.yaml" <<END
version: 1
vms:
  $1:
    cpus: 2
    memory: 256MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
    disks:
      data: {path: /run/disk.$3, format: $3}
      tools: {path: /run/tools.iso, device: cdrom}
END
    guest_spawn "$1" throughway -v run "/run/$1.yaml" --vm "$1"
    check "$3, life $2: the guest comes up" guest_up "$1" 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/$1.err")"
    guest_run "$1" 'mkdir -p /tmp/tools && mount -t iso9660 -o ro /dev/sr0 /tmp/tools' || bail "the CD with fio is mounted"
    [ -z "$durable" ] || check "$3, life $2: all that was durable is there: $(echo $durable | wc -w) MiB" guest_run "$1" "sh /tmp/tools/work.sh verify $(echo $durable)" 120
}

for format in raw qcow2; do
    throughway image create "/run/disk.$format" 64MiB >/dev/null || bail "an image is made"
    durable=
    for round in 1 2; do
        name=$format$round
        life "$name" "$round" "$format"
        from=$((round * 20))
        # In the background of the guest: what is said on the console is waited for here.
        guest_run "$name" "(sh /tmp/tools/work.sh write $from $((from + 19)) >/tmp/write 2>&1 &)" 10
        check "$format, life $round: some is durable" retry 60 has_regions "$name" $((round + 1))
        sleep 0.$((round * 3))
        guest_running "$name" && running=yes || running=no
        guest_kill "$name"
        is "$format, life $round: it was killed while it ran" "$running" yes
        durable="$durable $(regions "$name")"
        if [ "$(regions "$name" | wc -l)" -lt 20 ]; then ok "in the midst of its writes"; else not_ok "in the midst of its writes"; fi
        if [ $format = qcow2 ]; then
            in_sysroot qemu-img check "/run/disk.$format" >/run/check 2>&1
            status=$?
            # 3 is clusters that nothing refers to: waste, no error.
            if [ $status = 0 ] || [ $status = 3 ]; then ok "qemu-img finds no error"; else not_ok "qemu-img finds no error" "$(tail -n 3 /run/check | tr '\n' ' ')"; fi
        fi
    done
    name=${format}3
    life "$name" 3 "$format"
    [ $format = qcow2 ] && how='one by one' || how='io_uring in use'
    like "$format: how it is served is said" "$(cat "$LAB_OUT/$name.err")" "disk data: .*$how"
    guest_run "$name" 'poweroff -f' 1 >/dev/null
    is "$format: the guest powers off" "$(guest_wait "$name" 30)" 0
done
