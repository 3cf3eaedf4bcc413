// Config space by both ways in, and what is found there. A function is named by its bus, device and function in 16 bits.
#include "guest.h"

#define ECAM 0xe0000000
#define LAST_BUS 255

static u32 address(u32 function, unsigned offset) { return 1u << 31 | function << 8 | (offset & 0xfc); }
static u64 ecam(u32 function, unsigned offset) { return ECAM + ((u64)function << 12) + offset; }

u32 config_read(u32 function, unsigned offset) { return read32(ecam(function, offset)); }
void config_write(u32 function, unsigned offset, u32 value) { write32(ecam(function, offset), value); }
u16 config_read16(u32 function, unsigned offset) { return read16(ecam(function, offset)); }
void config_write16(u32 function, unsigned offset, u16 value) { write16(ecam(function, offset), value); }

static u32 read_by_ports(u32 function, unsigned offset)
{
    outl(0xcf8, address(function, offset));
    return inl(0xcfc);
}

bool next_function(u32 *function)
{
    for (u32 at = *function + 1; at <= (LAST_BUS << 8 | 0xff); at++) {
        // Devices but 0 are on bus 0 only: root ports have one device below them.
        if (at >> 8 && (at & 0xff) > 7) {
            at |= 0xff;
            continue;
        }
        if (config_read(at, 0) != 0xffffffff) {
            *function = at;
            return true;
        }
    }
    return false;
}

unsigned find_capability(u32 function, u8 id)
{
    if (!(config_read(function, 4) >> 16 & 1 << 4))
        return 0;
    unsigned at = config_read(function, 0x34) & 0xfc;
    for (unsigned limit = 48; at && limit; limit--) {
        u32 header = config_read(function, at);
        if ((header & 0xff) == id)
            return at;
        at = header >> 8 & 0xfc;
    }
    return 0;
}

u64 bar(u32 function, unsigned index)
{
    u32 low = config_read(function, 0x10 + 4 * index);
    if (low & 1)
        return 0;
    u64 high = (low & 6) == 4 ? config_read(function, 0x14 + 4 * index) : 0;
    return high << 32 | (low & ~0xfu);
}

static bool same(u32 function, unsigned offset)
{
    u32 value = read_by_ports(function, offset);
    if (config_read(function, offset) != value)
        return false;
    // Smaller parts of it, by both ways.
    for (unsigned byte = 0; byte < 4; byte++)
        if (inb((u16)(0xcfc + byte)) != (u8)(value >> 8 * byte) ||
            read8(ecam(function, offset + byte)) != (u8)(value >> 8 * byte))
            return false;
    for (unsigned word = 0; word < 4; word += 2)
        if (inw((u16)(0xcfc + word)) != (u16)(value >> 8 * word) ||
            read16(ecam(function, offset + word)) != (u16)(value >> 8 * word))
            return false;
    return true;
}

void pci_report(void)
{
    unsigned differences = 0;
    for (u32 function = 0; function < 256; function++)
        differences += read_by_ports(function, 0) != config_read(function, 0);
    for (u32 bus = 1; bus <= LAST_BUS; bus++)
        differences += read_by_ports(bus << 8, 0) != config_read(bus << 8, 0);
    u32 function = ~0u;
    while (next_function(&function)) {
        for (unsigned offset = 0; offset < 256; offset += 4)
            if (!same(function, offset)) {
                print("%x differs at %x\n", (u64)function, (u64)offset);
                differences++;
            }
        u32 class = config_read(function, 8) >> 8;
        print("function %x is %x class %x\n", (u64)function, (u64)config_read(function, 0), (u64)class);
    }
    print("differences: %u\n", (u64)differences);
    // CF8 reads back; without its enable bit, CFC is nothing.
    outl(0xcf8, 0x8000f844);
    print("address: %x\n", (u64)inl(0xcf8));
    outl(0xcf8, 0x0000f844);
    print("disabled: %x\n", (u64)inl(0xcfc));
}
