# Helpers for scenarios that start a Debian by firmware (`# image: debian`, `# image: live`), to be read after lib.sh.

peer_mount
# The images that the scenario asked for: /installed/disk.raw, /live/live.iso.
for tag in $(cat /sys/bus/virtio/drivers/9pnet_virtio/*/mount_tag | tr '\0' '\n' | grep -xE 'installed|live'); do
    mkdir -p "/$tag"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap,ro "$tag" "/$tag"
done
# QEMU's emulated SVM ends at once ("bql_locked") when a guest writes CR8 while an interrupt waits for it, and that is how each
# of the firmware's interrupt handlers ends. With time between two ticks of its timer the handlers are done before the next one.
# Nobody types into the firmware here, so that it may tick seldom.
echo 400000 >/sys/module/kvm/parameters/min_timer_period_us

OVMF_CODE=/sysroot/usr/share/OVMF/OVMF_CODE_4M.fd
OVMF_VARS=/sysroot/usr/share/OVMF/OVMF_VARS_4M.fd

# installed_disk: a disk on the installed one, at /run/root.qcow2.
installed_disk() {
    throughway image create /run/root.qcow2 --backing /installed/disk.raw --allow-backing /installed >/run/image 2>&1
    is "the guest has a disk on the installed one" "$?" 0 || bail "without a disk" "$(cat /run/image)"
}
# installed_guest: the lines of the file that say how it starts and from what.
installed_guest() {
    cat <<END
    boot:
      firmware: {code: $OVMF_CODE, vars: $OVMF_VARS}
      order: [root]
    disks:
      root: {path: /run/root.qcow2, format: qcow2, backing-folders: [/installed], queues: 1}
END
}

says() { [ "$(grep -ac -- "$2" "$LAB_OUT/$1.console")" -ge "${3:-1}" ]; }
says_or_gone() { says "$@" || ! guest_running "$1"; }
# waits NAME TEXT COUNT SECONDS: the guest's console has said so, so often.
waits() {
    retry "$4" says_or_gone "$1" "$2" "$3"
    says "$1" "$2" "$3" || { tail -c 1500 "$LAB_OUT/$1.console"; head -n 12 "$LAB_OUT/$1.err"; return 1; }
}
types() { printf '%s\n' "$2" >"/run/guest-$1/in"; }
# logs_in NAME COUNT: as a person would; afterwards commands come from guest_run.
logs_in() {
    types "$1" root
    waits "$1" 'Password:' "$2" 120 || return 1
    types "$1" lab
    waits "$1" 'root@lab:~#' "$2" 120 || return 1
    types "$1" "stty -echo; while read -r tag command; do echo \"@@begin \$tag\"; eval \"\$command\" </dev/null 2>&1; echo \"@@end \$tag \$?\"; done"
    retry 60 guest_run "$1" true 20
}
# asks NAME reboot|poweroff: and does not wait for it.
asks() { types "$1" "x $2"; }
