// A function behind a root port, driven as a driver would: BARs, MSI-X, DMA. Who plays the device does his part at each
// line that is printed.
#include "guest.h"

#define MSIX 0x11
#define VECTOR 0x41
#define MASKED 0x42

static bool requested(u8 vector)
{
    // The local APIC's interrupt request register: ring 3 takes no interrupts here, it looks for them.
    return read32(0xfee00200 + 0x10 * (vector / 32)) >> vector % 32 & 1;
}

static void wait_for_vector(u8 vector)
{
    while (!requested(vector))
        __asm__ volatile("pause");
}

static void set_entry(u64 table, unsigned index, u8 vector, bool masked)
{
    write32(table + 16 * index, 0xfee00000);
    write32(table + 16 * index + 4, 0);
    write32(table + 16 * index + 8, vector);
    write32(table + 16 * index + 12, masked);
}

void device(void)
{
    u32 function = 0xff;
    if (!next_function(&function))
        return print("no function below a root port\n");
    // Memory space and bus master.
    config_write(function, 4, (config_read(function, 4) & 0xffff) | 6);
    u64 registers = bar(function, 0);
    write32(registers + 0x100, 0x600df00d);
    print("device %x reads %x\n", (u64)function, (u64)read32(registers + 0x100));

    unsigned capability = find_capability(function, MSIX);
    u32 place = config_read(function, capability + 4), pending = config_read(function, capability + 8);
    u64 table = bar(function, place & 7) + (place & ~7u), bits = bar(function, pending & 7) + (pending & ~7u);
    write32(0xfee000f0, 0x1ff);
    set_entry(table, 0, VECTOR, false);
    // In use, and masked then.
    set_entry(table, 1, MASKED, false);
    config_write(function, capability, 1u << 31);
    set_entry(table, 1, MASKED, true);
    print("armed\n");
    wait_for_vector(VECTOR);
    print("interrupt; masked one %s\n", requested(MASKED) ? "too" : "not");
    while (!(read32(bits) & 2))
        __asm__ volatile("pause");
    print("pending; requested %s\n", requested(MASKED) ? "too" : "not");
    set_entry(table, 1, MASKED, false);
    wait_for_vector(MASKED);
    print("unmasked; pending %x\n", (u64)read32(bits));

    write64(MARK + 0x1000, 0);
    print("memory at %x\n", (u64)MARK + 0x1000);
    while (read64(MARK + 0x1000) != 0x600dda7a)
        __asm__ volatile("pause");
    print("written\n");
}

static volatile u64 taken;

void interrupt(void)
{
    taken++;
    write32(0xfee000b0, 0);
}

// Waits until no interrupt has come for 50 ms.
static void settle(void)
{
    u64 before;
    do {
        before = taken;
        for (u32 first = inl(0x608); ((inl(0x608) - first) & 0xffffff) < 179000;)
            ;
    } while (taken != before);
}

// INTx: the pin is a level, so it interrupts again after each end of interrupt until the device lets go of it.
void pin(void)
{
    u32 function = 0xff;
    if (!next_function(&function))
        return print("no function below a root port\n");
    print("pin %x\n", (u64)config_read(function, 0x3c) >> 8 & 0xff);
    config_write(function, 4, (config_read(function, 4) & 0xffff & ~(1 << 10)) | 6);
    write32(0xfee000f0, 0x1ff);
    // Pin A of device 1, as the machine's _PRT has it; level-triggered, active low, to this processor.
    write32(0xfec00000, 0x10 + 2 * 17 + 1);
    write32(0xfec00010, 0);
    write32(0xfec00000, 0x10 + 2 * 17);
    write32(0xfec00010, TAKEN | 1 << 15 | 1 << 13);
    print("armed\n");
    while (taken < 20)
        __asm__ volatile("pause");
    print("more and more\n");
    while (get() != 'l')
        ;
    settle();
    u64 before = taken;
    print("quiet\n");
    while (taken == before)
        __asm__ volatile("pause");
    print("came\n");
}
