# proves: Debian's OVMF starts what the file's boot order says, a CD first for once where it is told so, the file's order after the next reset, and another disk once that it is told of while it runs.
# kernels: debian
# suite: uefi
# image: debian
# timeout: 270
. /share/box/lib.sh
. /share/box/debian.sh

mkdir -p /run/kernel /run/esp /run/iso
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap,ro kernel /run/kernel
modprobe -d /run/kernel -a loop vfat nls_cp437 nls_ascii
# grub_says NAME COMMAND: GRUB's file of a system that says who it is and ends by COMMAND.
grub_says() { printf 'set timeout=0\necho "Started from %s."\nsleep 1\n%s\n' "$1" "$2"; }
# system NAME COMMAND: the same as /run/NAME.img, an ESP.
system() {
    dd if=/installed/disk.raw of="/run/$1.img" bs=1M skip=1 count=48 2>/dev/null
    mount -t vfat -o loop "/run/$1.img" /run/esp || return 1
    grub_says "$1" "$2" >/run/esp/EFI/debian/grub.cfg
    umount /run/esp
}
check "a system that ends by powering off is made" system one halt || bail "without systems"
check "one that ends by a reset" system two reboot
# An installer's CD, as Debian's GRUB knows it.
mkdir -p /run/iso/.disk /run/iso/boot/grub
cp /run/two.img /run/iso/esp.img
echo lab >/run/iso/.disk/info
grub_says cd reboot >/run/iso/boot/grub/grub.cfg
loader="/sysroot/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /sysroot/usr/lib/x86_64-linux-gnu:/sysroot/usr/lib"
# A boot image of one sector reaches to the end of the CD, for UEFI.
$loader /sysroot/usr/bin/genisoimage -quiet -R -V LABCD -e esp.img -no-emul-boot -boot-load-size 1 -o /run/cd.iso /run/iso >/run/genisoimage 2>&1
is "a CD is made" "$?" 0 || bail "without a CD" "$(tail -n 3 /run/genisoimage)"

cat >"$LAB_OUT/order.yaml" <<END
version: 1
vms:
  order:
    memory: 256MiB
    boot: {firmware: {code: $OVMF_CODE, vars: $OVMF_VARS}, order: [two, one]}
    disks:
      one: {path: /run/one.img, queues: 1}
      two: {path: /run/two.img, queues: 1}
      cd: {path: /run/cd.iso, device: cdrom}
END
throughway run "$LAB_OUT/order.yaml" --vm order --boot-once three >/run/refused 2>&1
is "a device that is not there is refused" "$?" 1
like "with the reason" "$(cat /run/refused)" 'no device `three`'

# One life of three starts: a CD for once, then what the file has first, then the other disk, of which it is told meanwhile.
guest_spawn order throughway run "$LAB_OUT/order.yaml" --vm order --boot-once cd
check "a guest that is to start from its CD once does" waits order 'Started from cd' 1 200 || bail "without that nothing follows"
check "after the reset it starts again" waits order 'BdsDxe: starting' 2 200 || bail "without a second start"
throughway vm boot-once order one >/run/boot-once 2>&1
is "while it runs it is told to start from another disk once" "$?" 0 || cat /run/boot-once
is "it powers off, as the system there does" "$(guest_wait order 200)" 0
starts=$(tr -d '\r' <"$LAB_OUT/order.console" | sed -n 's/.*Started from \(.*\)\./\1/p' | tr '\n' ' ')
like "it was started from the CD, from the first of the file's order, and from the disk it was told of: $starts" "$starts" '^cd two (two )?one $'
