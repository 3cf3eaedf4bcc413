// Config space by both ways in.
#include "guest.h"

static u32 address(unsigned bus, unsigned devfn, unsigned offset)
{
    return 1u << 31 | bus << 16 | devfn << 8 | (offset & 0xfc);
}

u32 config_read_ports(unsigned bus, unsigned devfn, unsigned offset)
{
    outl(0xcf8, address(bus, devfn, offset));
    return inl(0xcfc);
}

static u64 ecam(unsigned bus, unsigned devfn, unsigned offset)
{
    return 0xe0000000 + ((u64)bus << 20) + ((u64)devfn << 12) + offset;
}

static bool same(unsigned devfn, unsigned offset)
{
    u32 value = config_read_ports(0, devfn, offset);
    if (read32(ecam(0, devfn, offset)) != value)
        return false;
    // Smaller parts of it, by both ways.
    for (unsigned byte = 0; byte < 4; byte++)
        if (inb((u16)(0xcfc + byte)) != (u8)(value >> 8 * byte) ||
            read8(ecam(0, devfn, offset + byte)) != (u8)(value >> 8 * byte))
            return false;
    for (unsigned word = 0; word < 4; word += 2)
        if (inw((u16)(0xcfc + word)) != (u16)(value >> 8 * word) ||
            read16(ecam(0, devfn, offset + word)) != (u16)(value >> 8 * word))
            return false;
    return true;
}

void pci_report(void)
{
    unsigned differences = 0;
    for (unsigned devfn = 0; devfn < 256; devfn++) {
        u32 id = config_read_ports(0, devfn, 0);
        if (read32(ecam(0, devfn, 0)) != id)
            differences++;
        if (id == 0xffffffff)
            continue;
        for (unsigned offset = 0; offset < 256; offset += 4)
            if (!same(devfn, offset)) {
                print("%x differs at %x\n", (u64)devfn, (u64)offset);
                differences++;
            }
        u32 class = config_read_ports(0, devfn, 8) >> 8;
        print("function %x is %x class %x\n", (u64)devfn, (u64)id, (u64)class);
    }
    print("differences: %u\n", (u64)differences);
    // Other buses are empty, and so is what comes after the 256 bytes of a conventional function, or reads 0.
    unsigned elsewhere = 0;
    for (unsigned bus = 1; bus < 256; bus++)
        if (config_read_ports(bus, 0, 0) != 0xffffffff || read32(ecam(bus, 0, 0)) != 0xffffffff)
            elsewhere++;
    print("elsewhere: %u\n", (u64)elsewhere);
    // CF8 reads back; without its enable bit, CFC is nothing.
    outl(0xcf8, 0x8000f844);
    print("address: %x\n", (u64)inl(0xcf8));
    outl(0xcf8, 0x0000f844);
    print("disabled: %x\n", (u64)inl(0xcfc));
}
