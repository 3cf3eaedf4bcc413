# proves: A variable, a boot entry and a file that an installed Debian wrote are there after a cold start.
# kernels: debian
# suite: uefi
# image: debian
# gates: no
# timeout: 900
# boot: own
. /share/box/lib.sh
. /share/box/debian.sh

# Open: in the one run that there was, the firmware stood still at the cold start, before it came to its boot loader.
installed_disk
cat >"$LAB_OUT/debian.yaml" <<END
version: 1
vms:
  debian:
    cpus: 1
    memory: 512MiB
$(installed_guest)
END
variable=/sys/firmware/efi/efivars/Throughway-5e9c7a1f-4b1d-4c59-9f0e-2f6d8a3b7c10

guest_start warm "$LAB_OUT/debian.yaml" debian
check "the system comes to its login" waits warm 'lab login:' 1 400 || bail "without a login"
check "root logs in" logs_in warm 1 || bail "without a shell" "$(tail -c 300 "$LAB_OUT/warm.console")"
guest_run warm 'efibootmgr -q -c -l "\\EFI\\debian\\grubx64.efi" -d /dev/vda -p 1 -L Kept' 60
is "a boot entry is made in the variables" "$?" 0
guest_run warm "printf '\\007\\000\\000\\000kept' >$variable" 60
is "a variable is written" "$?" 0
guest_run warm 'touch /kept; sync' 60
asks warm poweroff
is "it powers off" "$(guest_wait warm 120)" 0

guest_start cold "$LAB_OUT/debian.yaml" debian
check "it starts again from cold" waits cold 'lab login:' 1 400 || bail "without a login"
check "root logs in again" logs_in cold 1 || bail "without a shell" "$(tail -c 300 "$LAB_OUT/cold.console")"
is "the variable has been kept" "$(guest_run cold "tail -c 4 $variable" 60)" kept
like "the boot entry too" "$(guest_run cold efibootmgr 60)" 'Kept'
check "and the disk" guest_run cold 'test -e /kept' 60
asks cold poweroff
is "it powers off" "$(guest_wait cold 120)" 0
