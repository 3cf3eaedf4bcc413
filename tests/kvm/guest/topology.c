// Where each processor is: by CPUID (Intel SDM 2, leaves 1 and 0BH), and by the MADT (ACPI 6.5, 5.2.12).
#include "guest.h"

static struct { u32 highest, initial, id, thread_shift, threads, package_shift, within; } places[MOST_CPUS];

static void cpuid(u32 leaf, u32 subleaf, u32 *words)
{
    __asm__ volatile("cpuid"
                     : "=a"(words[0]), "=b"(words[1]), "=c"(words[2]), "=d"(words[3])
                     : "a"(leaf), "c"(subleaf));
}

void note_place(u32 cpu)
{
    u32 words[4];
    cpuid(0, 0, words);
    places[cpu].highest = words[0];
    cpuid(1, 0, words);
    places[cpu].initial = words[1] >> 24;
    if (places[cpu].highest < 0xb)
        return;
    cpuid(0xb, 0, words);
    places[cpu].thread_shift = words[0];
    places[cpu].threads = words[1];
    cpuid(0xb, 1, words);
    places[cpu].package_shift = words[0];
    places[cpu].within = words[1];
    places[cpu].id = words[3];
}

void topology(u64 cpus)
{
    u64 madt = find_table("APIC"), end = madt + read32(madt + 4), listed = 0;
    for (u64 entry = madt + 44; entry < end && read8(entry + 1); entry += read8(entry + 1))
        // Local APIC: enabled, and the number of its processor is its APIC id here.
        if (read8(entry) == 0 && read32(entry + 4) & 1 && read8(entry + 3) == listed)
            listed++;
    print("listed: %u\n", listed);
    for (u64 cpu = 0; cpu < cpus && cpu < MOST_CPUS; cpu++)
        if (places[cpu].highest < 0xb)
            print("processor %u: initial %u\n", cpu, (u64)places[cpu].initial);
        else
            print("processor %u: initial %u id %u threads %u shift %u, %u in a socket shift %u\n", cpu,
                  (u64)places[cpu].initial, (u64)places[cpu].id, (u64)places[cpu].threads,
                  (u64)places[cpu].thread_shift, (u64)places[cpu].within, (u64)places[cpu].package_shift);
}
