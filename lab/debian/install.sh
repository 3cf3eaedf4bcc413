#!/bin/bash
# Installs Debian on a disk image with a GPT: GRUB in an ESP, the system on ext4. Or makes a live Debian, on a CD that UEFI starts.
# No loop device, nothing mounted outside of this process's own mount namespace; run by src/installed.rs under `unshare`, as root
# or as root of a user namespace.
#
#   install.sh KIND WORK POOL TOOLS SUITE PACKAGES
#
# KIND is `disk` or `live`, WORK is scratch, POOL has the .deb files of all that is installed, TOOLS is a root with debootstrap,
# mtools, sfdisk, mke2fs, mksquashfs and genisoimage, SUITE is the release and PACKAGES what is installed beside the base system.
# The image is WORK/disk.raw or WORK/live.iso.
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
kind=$1 work=$2 pool=$3 tools=$4 suite=$5 packages=$6
root=$work/root disk=$work/disk.raw
umask 022

# A program of TOOLS, with the loader and the libraries there.
tool() {
    local name=$1 lib=$tools/usr/lib/x86_64-linux-gnu
    shift
    "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$(readlink -e "$tools/usr/sbin/$name" "$tools/usr/bin/$name" | head -n 1)" "$@"
}

# ---- a repository of the packages, which apt has looked at already -----------
echo "Making a repository"
repository=$work/repository
binary=$repository/dists/$suite/main/binary-amd64
mkdir -p "$binary" "$repository/pool"
for deb in "$pool"/*.deb; do
    name=$(dpkg-deb -f "$deb" Package)
    cp -l "$deb" "$repository/pool/$name.deb" 2>/dev/null || cp "$deb" "$repository/pool/$name.deb"
    dpkg-deb -f "$deb"
    printf 'Filename: pool/%s.deb\nSize: %s\nSHA256: %s\n\n' "$name" "$(stat -c %s "$deb")" "$(sha256sum <"$deb" | cut -d' ' -f1)"
done >"$binary/Packages"
cat >"$repository/dists/$suite/Release" <<END
Suite: $suite
Codename: $suite
Components: main
Architectures: amd64
SHA256:
 $(sha256sum <"$binary/Packages" | cut -d' ' -f1) $(stat -c %s "$binary/Packages") main/binary-amd64/Packages
END

# ---- the system --------------------------------------------------------------
echo "Unpacking the base system"
DEBOOTSTRAP_DIR=$tools/usr/share/debootstrap bash "$tools/usr/sbin/debootstrap" --foreign --variant=minbase --no-check-gpg \
    --include="$packages" "$suite" "$root" "file://$repository"

# What this machine never has, and what nobody reads on it.
mkdir -p "$root/etc/dpkg/dpkg.cfg.d" "$root/etc/initramfs-tools/conf.d"
for path in /usr/share/doc /usr/share/man /usr/share/locale /usr/share/info; do
    echo "path-exclude=$path/*"
done >"$root/etc/dpkg/dpkg.cfg.d/lab"
scsi=drivers/scsi
[ $kind = disk ] || scsi=
for part in $scsi drivers/gpu drivers/media drivers/infiniband drivers/usb drivers/staging drivers/net/wireless drivers/iio \
    drivers/hwmon drivers/input drivers/md drivers/ata drivers/mtd drivers/isdn sound net/bluetooth net/mac80211 fs/xfs fs/btrfs fs/ocfs2; do
    echo "path-exclude=/lib/modules/*/kernel/$part/*"
    echo "path-exclude=/usr/lib/modules/*/kernel/$part/*"
done >>"$root/etc/dpkg/dpkg.cfg.d/lab"
# The initial RAM file system has what finds the disk, and no more.
printf 'MODULES=list\nCOMPRESS=gzip\nFSTYPE=ext4\n' >"$root/etc/initramfs-tools/conf.d/lab"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$root/etc/initramfs-tools/modules"
# A live one also has what finds a CD, and what its file system lies in.
[ $kind = disk ] || printf 'virtio_scsi\nsr_mod\nisofs\nloop\nsquashfs\noverlay\n' >>"$root/etc/initramfs-tools/modules"

echo "Installing"
chroot "$root" /usr/bin/env -i PATH="$PATH" DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root \
    /debootstrap/debootstrap --second-stage

# ---- what an installer asks for ------------------------------------------------
echo "Configuring"
system=6d9e2f5c-3f0b-4a53-9f0e-0b6a4c1d7e21 esp=5A5A-7711
echo lab >"$root/etc/hostname"
echo "127.0.0.1 localhost lab" >"$root/etc/hosts"
cat >"$root/etc/fstab" <<END
UUID=$system / ext4 errors=remount-ro,noatime 0 1
UUID=$esp /boot/efi vfat umask=0077,nofail,noauto 0 1
END
mkdir -p "$root/boot/efi" "$root/boot/grub"
# A hash that takes the box no seconds to compute, and no words at the login.
echo 'root:lab' | chroot "$root" /usr/sbin/chpasswd -c SHA256 -s 1000
touch "$root/root/.hushlogin"
# No time is spent on what a machine for an hour does not need.
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer man-db.timer dpkg-db-backup.timer systemd-timesyncd.service \
    e2scrub_reap.service systemd-pstore.service getty@tty1.service getty-static.service systemd-rfkill.service dev-mqueue.mount \
    dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    modprobe@configfs.service modprobe@fuse.service modprobe@dm_mod.service modprobe@loop.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-journal-flush.service systemd-random-seed.service systemd-sysusers.service \
    systemd-binfmt.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
mkdir -p "$root/etc/systemd/journald.conf.d" "$root/etc/systemd/system/systemd-udev-trigger.service.d"
printf '[Journal]\nStorage=none\n' >"$root/etc/systemd/journald.conf.d/lab.conf"
# udev looks at what it can do something about, and not at a hundred terminals.
cat >"$root/etc/systemd/system/systemd-udev-trigger.service.d/lab.conf" <<END
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=pci --subsystem-match=virtio --subsystem-match=net --subsystem-match=block
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=tty --sysname-match=ttyS0
END
# No menu: drawing one on a serial line takes the firmware longer than all else.
cat >"$root/boot/grub/grub.cfg" <<END
set timeout=0
set default=0
menuentry 'Debian' {
    search --no-floppy --fs-uuid --set=root $system
    echo 'Loading Debian ...'
    linux /vmlinuz root=UUID=$system ro console=ttyS0 8250.nr_uarts=1 quiet
    initrd /initrd.img
}
END
rm -rf "$root/debootstrap" "$root/var/cache/apt/archives"/*.deb "$root/var/lib/apt/lists"/*

export MTOOLS_SKIP_CHECK=1
signed=$root/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed
# esp IMAGE CONFIGURATION [OFFSET]: an ESP with GRUB in an image that is there.
mib=1048576 esp_mib=48
esp() {
    local at="$1@@${3:-0}"
    tool mtools -c mformat -i "$at" -F -c 1 -T $((esp_mib * 2048)) -h 16 -s 32 -N ${esp/-/} -v ESP ::
    tool mtools -c mmd -i "$at" ::/EFI ::/EFI/BOOT ::/EFI/debian
    tool mtools -c mcopy -i "$at" "$signed" ::/EFI/BOOT/BOOTX64.EFI
    tool mtools -c mcopy -i "$at" "$signed" ::/EFI/debian/grubx64.efi
    tool mtools -c mcopy -i "$at" "$2" ::/EFI/debian/grub.cfg
}

# ---- the CD ----------------------------------------------------------------------
if [ $kind = live ]; then
    echo "Making the CD"
    cd=$work/cd
    mkdir -p "$cd/live" "$cd/.disk" "$cd/boot/grub"
    cp -L "$root/vmlinuz" "$cd/live/vmlinuz"
    cp -L "$root/initrd.img" "$cd/live/initrd.img"
    echo 'A live Debian of the lab' >"$cd/.disk/info"
    cat >"$cd/boot/grub/grub.cfg" <<END
set timeout=0
set default=0
menuentry 'Debian, live' {
    search --no-floppy --file --set=root /.disk/info
    echo 'Loading the live Debian ...'
    linux /live/vmlinuz boot=live nopersistence console=ttyS0 8250.nr_uarts=1 quiet
    initrd /live/initrd.img
}
END
    # What the system on the CD installs itself with.
    truncate -s $((esp_mib * mib)) "$cd/esp.img"
    cp "$cd/boot/grub/grub.cfg" "$work/grub.cfg"
    esp "$cd/esp.img" "$work/grub.cfg"
    tool mksquashfs "$root" "$cd/live/filesystem.squashfs" -quiet -no-progress -noappend -comp lz4
    # A boot image of one sector reaches to the end of the CD, for UEFI.
    tool genisoimage -quiet -R -V LABLIVE -e esp.img -no-emul-boot -boot-load-size 1 -o "$work/live.iso" "$cd"
    exit
fi

# ---- the disk ------------------------------------------------------------------
echo "Making the disk"
system_mib=1200
truncate -s $(((1 + esp_mib + system_mib + 1) * mib)) "$disk"
printf 'label: gpt\nstart=1MiB, size=%dMiB, type=uefi, name=ESP\nstart=%dMiB, size=%dMiB, type=linux, name=system\n' \
    $esp_mib $((1 + esp_mib)) $system_mib | tool sfdisk --quiet "$disk"
cat >"$work/grub.cfg" <<END
search --no-floppy --fs-uuid --set=root $system
set prefix=(\$root)/boot/grub
configfile \$prefix/grub.cfg
END
esp "$disk" "$work/grub.cfg" $mib
tool mke2fs -q -t ext4 -O ^orphan_file,^metadata_csum_seed -U $system -L system -d "$root" \
    -E offset=$(((1 + esp_mib) * mib)),lazy_itable_init=1,root_owner=0:0 "$disk" ${system_mib}M
