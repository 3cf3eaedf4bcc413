// Garbage to everything that a guest can write to, from a seed.
#include "guest.h"

static u64 state;

// xorshift64*
static u64 next(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
}

// Values that break things more often than chance does.
static u64 value(void)
{
    switch (next() % 4) {
    case 0: return 0;
    case 1: return ~0ull;
    default: return next();
    }
}

// What ends or resets the machine, or stops this processor; `garbage_power` is for those.
static bool is_power(u64 port, unsigned width)
{
    static const u16 first_last[][2] = {{0x64, 0x64}, {0x604, 0x605}, {0xcf9, 0xcf9}};
    for (unsigned i = 0; i < 3; i++)
        if (port <= first_last[i][1] && port + width > first_last[i][0])
            return true;
    return false;
}

static void port_write(u16 port, unsigned width)
{
    u64 v = value();
    switch (width) {
    case 1: outb(port, (u8)v); break;
    case 2: outw(port, (u16)v); break;
    default: outl(port, (u32)v);
    }
}

static void port_read(u16 port, unsigned width)
{
    switch (width) {
    case 1: inb(port); break;
    case 2: inw(port); break;
    default: inl(port);
    }
}

// All ports once with `width`, each written or read.
static void every_port(unsigned width)
{
    for (u32 port = 0; port + width <= 0x10000; port++) {
        if (is_power(port, width))
            continue;
        if (next() % 4)
            port_write((u16)port, width);
        else
            port_read((u16)port, width);
    }
}

static void memory_access(u64 at)
{
    u64 v = value();
    switch (next() % 8) {
    case 0: write8(at, (u8)v); break;
    case 1: write16(at, (u16)v); break;
    case 2: write64(at, v); break;
    case 3: read8(at); break;
    case 4: read64(at); break;
    case 5: read32(at); break;
    default: write32(at, (u32)v);
    }
}

static void config_ports(unsigned bus, unsigned devfn, unsigned offset)
{
    outl(0xcf8, 1u << 31 | bus << 16 | devfn << 8 | (offset & 0xfc));
    static const u8 widths[] = {1, 2, 4, 4};
    unsigned width = widths[next() % 4];
    port_write((u16)(0xcfc + (offset & (4 - width))), width);
}

static const u8 functions[] = {0x00, 0xf8};

// Each byte of each function, by both ways, and places in the rest of ECAM.
static void every_register(void)
{
    for (unsigned i = 0; i < sizeof functions; i++) {
        for (unsigned offset = 0; offset < 256; offset++)
            config_ports(0, functions[i], offset);
        for (unsigned offset = 0; offset < 0x1000; offset += 1 + next() % 3)
            memory_access(0xe0000000 + ((u64)functions[i] << 12) + offset);
    }
    for (unsigned i = 0; i < 500; i++) {
        memory_access(0xe0000000 + (next() & 0xfffffff));
        config_ports(next() & 0xff, next() & 0xff, next() & 0xff);
    }
    outl(0xcf8, 0);
}

// Anywhere in the holes between RAM, ECAM, interrupt controllers and the end of what is mapped.
static void every_hole(void)
{
    for (unsigned i = 0; i < 1000; i++) {
        memory_access(0x80000000 + next() % 0x60000000);
        memory_access(0xf0000000 + next() % 0x0ec00000);
        memory_access(0x180000000 + next() % 0x7ffffff0);
    }
}

// Bytes by string instructions, to any port but those of `is_power`.
static void strings(void)
{
    static u8 bytes[1024];
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (u8)next();
    for (unsigned i = 0; i < 200; i++) {
        u16 port = next() % 2 ? (u16)next() : (u16)(next() & 0xfff);
        if (is_power(port, 4) || port > 0xfffc)
            continue;
        void *at = bytes;
        u64 count = 1 + next() % 200;
        switch (next() % 4) {
        case 0: __asm__ volatile("rep outsb" : "+S"(at), "+c"(count) : "d"(port) : "memory"); break;
        case 1: __asm__ volatile("rep outsw" : "+S"(at), "+c"(count) : "d"(port) : "memory"); break;
        case 2: __asm__ volatile("rep outsl" : "+S"(at), "+c"(count) : "d"(port) : "memory"); break;
        default: __asm__ volatile("rep insl" : "+D"(at), "+c"(count) : "d"(port) : "memory");
        }
    }
}

void garbage(u64 seed)
{
    state = seed * 0x9e3779b97f4a7c15 + 1;
    for (unsigned round = 0; round < 2; round++) {
        every_register();
        every_hole();
        strings();
    }
    every_port(1);
    every_port(2);
    every_port(4);
    every_register();
    console_again();
    print("\n");
}

// Garbage to the ports of power management, reset and configuration until the machine ends or has been reset often enough.
// Where the seed goes on after a reset is in RAM.
void garbage_power(u64 seed)
{
    static const u16 ports[] = {0x64, 0x604, 0x605, 0xcf8, 0xcf9, 0xcfa, 0xcfc, 0x600, 0x602, 0x620, 0x628, 0x70, 0x71};
    u64 boots = read64(MARK + 32) == ~seed ? read64(MARK + 40) + 1 : 1;
    write64(MARK + 32, ~seed);
    write64(MARK + 40, boots);
    state = (seed + boots) * 0x9e3779b97f4a7c15 + 1;
    if (boots > 20)
        return print("reset often enough\n");
    for (unsigned i = 0; i < 3000; i++)
        port_write(ports[next() % (sizeof ports / sizeof *ports)], 1u << next() % 3);
    console_again();
    print("\n");
    print("neither off nor reset\n");
}
