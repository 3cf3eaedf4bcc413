# proves: A CD image is /dev/sr0 in a guest, as installers want it: it is mounted, read whole and equal, cannot be written, and is ejected and loaded by the guest, also over its reset. Another is put in from outside.
# kernels: debian
# timeout: 420
. /share/box/lib.sh

peer_mount
mkdir -p /run/cd
head -c 3000000 /dev/urandom >/run/cd/data
echo 'made for this' >/run/cd/README
libraries=/sysroot/usr/lib/x86_64-linux-gnu
mkdir -p /run/cd/tools
cp /sysroot/usr/bin/eject /run/cd/tools/
loader="$libraries/ld-linux-x86-64.so.2 --library-path $libraries:/sysroot/usr/lib"
$loader --list /sysroot/usr/bin/eject | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | while read -r library; do cp -L "$library" /run/cd/tools/; done
$loader /sysroot/usr/bin/genisoimage -quiet -R -V LABCD -o /run/install.iso /run/cd 2>/run/genisoimage
is "a CD is made" "$?" 0 || bail "without a CD" "$(tail -n 3 /run/genisoimage)"

mkdir -p /run/second
echo 'the other one' >/run/second/README
$loader /sysroot/usr/bin/genisoimage -quiet -R -V SECOND -o /run/second.iso /run/second 2>>/run/genisoimage

cat >/run/cdrom.yaml <<END
version: 1
vms:
  cdrom:
    memory: 192MiB
    boot: {kernel: $GUEST_KERNEL, initrd: $GUEST_INITRD, cmdline: "console=ttyS0 quiet lab.agent"}
    disks:
      install: {path: /run/install.iso, device: cdrom}
END
ups() { [ "$(grep -c '@@up' "$LAB_OUT/cdrom.console")" -ge "$1" ]; }
# Linux closes an open tray when somebody opens the drive, unless it is told not to.
stays_open() { guest_run cdrom 'echo 0 >/proc/sys/dev/cdrom/autoclose'; }
mounted() { guest_run cdrom 'mkdir -p /tmp/cd && mount -t iso9660 -o ro /dev/sr0 /tmp/cd && cat /tmp/cd/README'; }

guest_start cdrom /run/cdrom.yaml
check "the guest comes up" guest_up cdrom 150 || bail "without a guest" "$(tail -n 5 "$LAB_OUT/cdrom.err")"
dmesg=$(guest_run cdrom "dmesg | grep -E 'sr0|scsi|CD-ROM'" 60)
echo "$dmesg"
like "its kernel finds the drive" "$dmesg" 'CD-ROM *THRUWAY *CD-ROM'
like "and what it can" "$dmesg" '\[sr0\] scsi3-mmc drive.*tray'
is "the medium has all blocks" "$(guest_run cdrom 'cat /sys/block/sr0/size')" "$(($(stat -c %s /run/install.iso) / 512))"
is "blocks are of 2048 bytes" "$(guest_run cdrom 'cat /sys/block/sr0/queue/logical_block_size')" 2048
is "it is mounted" "$(mounted)" 'made for this'
is "what is read is equal" "$(guest_run cdrom 'sha256sum </tmp/cd/data' 60)" "$(sha256sum </run/cd/data)"
is "all of it" "$(guest_run cdrom 'sha256sum </dev/sr0' 60)" "$(sha256sum </run/install.iso)"
change() { throughway vm change-medium cdrom install "$@" >/run/change 2>&1; }
change /run/second.iso
is "a medium that is mounted is not changed" "$?" 1
like "with the reason" "$(cat /run/change)" 'has locked the drive'
is "and is as it was" "$(guest_run cdrom 'sha256sum </tmp/cd/data' 60)" "$(sha256sum </run/cd/data)"
# After this Linux has unlocked the drive, though it is mounted.
check "it cannot be written" guest_run cdrom '! dd if=/dev/zero of=/dev/sr0 bs=2048 count=1'
guest_run cdrom 'cp -r /tmp/cd/tools /tmp/tools'
guest_run cdrom 'umount /tmp/cd'
change /run/nowhere.iso
is "an image that is not there is refused" "$?" 1
like "with the reason" "$(cat /run/change)" 'nowhere.iso: No such file'
check "another medium is put in" change /run/second.iso
is "which the guest finds" "$(retry 20 guest_run cdrom "test \$(cat /sys/block/sr0/size) != 0" 5; mounted)" 'the other one'
guest_run cdrom 'umount /tmp/cd'
check "the drive is emptied" change --eject
check "and nothing is in it" guest_run cdrom '! dd if=/dev/sr0 of=/dev/null bs=2048 count=1'
check "the first is put in again" change /run/install.iso
is "and is the first" "$(mounted)" 'made for this'
stays_open
check "then it is ejected" guest_run cdrom 'umount /tmp/cd && LD_LIBRARY_PATH=/tmp/tools /tmp/tools/eject -r /dev/sr0'
check "and nothing is there" guest_run cdrom '! dd if=/dev/sr0 of=/dev/null bs=2048 count=1'
guest_run cdrom 'reboot -f' 1 >/dev/null
check "it comes up again after a reset" retry 150 ups 2
stays_open
check "the tray is still open" guest_run cdrom '! dd if=/dev/sr0 of=/dev/null bs=2048 count=1'
check "the guest loads it" guest_run cdrom 'echo 1 >/proc/sys/dev/cdrom/autoclose; dd if=/dev/sr0 of=/dev/null bs=2048 count=1'
is "and mounts it again" "$(mounted)" 'made for this'
is "there is nothing to complain about" "$(guest_run cdrom "dmesg | grep -iE 'I/O error.*sr0|virtio.*(fail|error)|BUG:|WARNING:'" 60)" ""
guest_run cdrom 'poweroff -f' 1 >/dev/null
is "it powers off" "$(guest_wait cdrom 30)" 0
