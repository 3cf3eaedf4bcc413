# proves: A live Debian starts from its CD by Debian's OVMF and GRUB, finds the CD it runs from, puts itself on an empty disk as an installer does, and the disk starts without the CD.
# kernels: debian
# suite: uefi
# image: live
# timeout: 900
# boot: own
. /share/box/lib.sh
. /share/box/debian.sh

throughway image create /run/disk.raw 1300MiB >/run/image 2>&1
is "the guest has an empty disk" "$?" 0 || bail "without a disk" "$(cat /run/image)"
cat >"$LAB_OUT/live.yaml" <<END
version: 1
vms:
  live:
    memory: 640MiB
    rng: true
    boot: {firmware: {code: $OVMF_CODE, vars: $OVMF_VARS}, order: [disk, cd]}
    disks:
      disk: {path: /run/disk.raw, queues: 1}
      cd: {path: /live/live.iso, device: cdrom}
END

guest_spawn live throughway -v run "$LAB_OUT/live.yaml" --vm live
check "of an empty disk and a CD, the CD is started" waits live 'Loading the live Debian' 1 200 || bail "without a boot loader"
check "the live system comes to its login" waits live 'lab login:' 1 400 || bail "without a login"
check "root logs in" logs_in live 1 || bail "without a shell" "$(tail -c 300 "$LAB_OUT/live.console")"
like "it runs from the CD that it found" "$(guest_run live 'findmnt -no SOURCE,FSTYPE /run/live/medium' 30)" '/dev/sr0 +iso9660'
is "its own file system lies over that" "$(guest_run live 'findmnt -no FSTYPE /' 30)" overlay
is "the medium cannot be written" "$(guest_run live 'cat /sys/block/sr0/ro; touch /run/live/medium/x 2>/dev/null || echo no' 30 | tail -n 1)" no

# What installers do: parts, file systems, the system, a boot loader.
install() {
    guest_run live "$1" "${3:-120}" >"$LAB_OUT/install-$2" 2>&1
}
system=6d9e2f5c-3f0b-4a53-9f0e-0b6a4c1d7e21
check "the disk is parted" install "printf 'label: gpt\\nsize=48MiB, type=uefi\\ntype=linux\\n' | sfdisk -q /dev/vda && udevadm settle" parted || bail "without parts" "$(cat "$LAB_OUT/install-parted")"
check "its parts have file systems" install "mkfs.vfat -F 32 -i 5A5A7711 /dev/vda1 && mke2fs -q -t ext4 -U $system /dev/vda2 && mkdir -p /target && mount /dev/vda2 /target" formatted || bail "without file systems" "$(cat "$LAB_OUT/install-formatted")"
check "the system is copied from the CD" install 'cp -ax /run/live/rootfs/filesystem.squashfs/. /target/' copied 500 || bail "without a system" "$(tail -n 3 "$LAB_OUT/install-copied")"
check "a boot loader is put into the ESP" install 'mount /dev/vda1 /target/boot/efi && mkdir -p /target/boot/efi/EFI/BOOT /target/boot/efi/EFI/debian && cp /target/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed /target/boot/efi/EFI/BOOT/BOOTX64.EFI && cp /target/boot/grub/grub.cfg /target/boot/efi/EFI/debian/grub.cfg && touch /target/was-installed && umount /target/boot/efi /target' loader || bail "without a boot loader" "$(cat "$LAB_OUT/install-loader")"
asks live poweroff
is "it powers off" "$(guest_wait live 120)" 0

sed '/cd: {/d; s/, cd\]/]/' "$LAB_OUT/live.yaml" >"$LAB_OUT/disk.yaml"
guest_start installed "$LAB_OUT/disk.yaml" live
check "without the CD the disk is started" waits installed 'Loading Debian' 1 200 || bail "without a boot loader"
check "the installed system comes to its login" waits installed 'lab login:' 1 400 || bail "without a login"
check "root logs in there" logs_in installed 1 || bail "without a shell" "$(tail -c 300 "$LAB_OUT/installed.console")"
like "it runs from the disk" "$(guest_run installed 'findmnt -no SOURCE,FSTYPE /' 30)" '/dev/vda2 +ext4'
check "and is the one that was installed" guest_run installed 'test -e /was-installed'
asks installed poweroff
is "it powers off" "$(guest_wait installed 120)" 0
