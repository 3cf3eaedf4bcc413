// Power-off, reset and the power button, by what the ACPI tables say.
#include "guest.h"

static bool is(u64 at, const char *name)
{
    for (; *name; at++, name++)
        if (read8(at) != (u8)*name)
            return false;
    return true;
}

// From the RSDP by the XSDT.
u64 find_table(const char *name)
{
    u64 xsdt = read64(boot()->rsdp + 24);
    for (u64 entry = xsdt + 36; entry < xsdt + read32(xsdt + 4); entry += 8)
        if (is(read64(entry), name))
            return read64(entry);
    print("no %s\n", name);
    return 0;
}

// ACPI 6.5, 5.2.9.
static u64 fadt(void) { return find_table("FACP"); }

// The sleep type of S5: the first element of the package \_S5 in the DSDT.
static u16 sleep_type_s5(u64 table)
{
    u64 dsdt = read64(table + 140) ? read64(table + 140) : read32(table + 40);
    for (u64 at = dsdt + 36; at < dsdt + read32(dsdt + 4); at++)
        // PackageOp, one byte of length, number of elements, BytePrefix.
        if (is(at, "_S5_") && read8(at + 4) == 0x12 && read8(at + 7) == 0x0a)
            return read8(at + 8);
    print("no _S5\n");
    return 0;
}

void power_off(void)
{
    u64 table = fadt();
    u16 type = sleep_type_s5(table);
    outw((u16)read32(table + 64), (u16)(type << 10 | 1 << 13));
    for (;;)
        print("still on\n");
}

void reset_by_acpi(void)
{
    u64 table = fadt();
    // RESET_REG: a generic address, in I/O space.
    if (read8(table + 116) != 1)
        print("RESET_REG is no port\n");
    outb((u16)read64(table + 120), read8(table + 128));
}

void wait_for_power_button(void)
{
    u16 status = (u16)read32(fadt() + 56);
    // PWRBTN_EN, which lets the button interrupt by the SCI.
    outw((u16)(status + 2), 1 << 8);
    while (!(inw(status) & 1 << 8))
        __asm__ volatile("pause");
}
