// Garbage to everything that a guest can write to, from a seed.
#include "guest.h"

struct random { u64 state; };

// xorshift64*
static u64 next(struct random *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return r->state * 0x2545f4914f6cdd1d;
}

static struct random seeded(u64 seed) { return (struct random){seed * 0x9e3779b97f4a7c15 + 1}; }

// Values that break things more often than chance does.
static u64 value(struct random *r)
{
    switch (next(r) % 4) {
    case 0: return 0;
    case 1: return ~0ull;
    default: return next(r);
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

static void port_write(struct random *r, u16 port, unsigned width)
{
    u64 v = value(r);
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
static void every_port(struct random *r, unsigned width)
{
    for (u32 port = 0; port + width <= 0x10000; port++) {
        if (is_power(port, width))
            continue;
        if (next(r) % 4)
            port_write(r, (u16)port, width);
        else
            port_read((u16)port, width);
    }
}

static void memory_access(struct random *r, u64 at)
{
    u64 v = value(r);
    switch (next(r) % 8) {
    case 0: write8(at, (u8)v); break;
    case 1: write16(at, (u16)v); break;
    case 2: write64(at, v); break;
    case 3: read8(at); break;
    case 4: read64(at); break;
    case 5: read32(at); break;
    default: write32(at, (u32)v);
    }
}

static void config_ports(struct random *r, u32 function, unsigned offset)
{
    static const u8 widths[] = {1, 2, 4, 4};
    unsigned width = widths[next(r) % 4];
    outl(0xcf8, 1u << 31 | function << 8 | (offset & 0xfc));
    port_write(r, (u16)(0xcfc + (offset & (4 - width))), width);
}

// What there was before any garbage: functions, and the memory of their BARs.
#define MOST 64
static u32 functions[MOST];
static u64 bars[MOST];
static unsigned function_count, bar_count;

void look_around(void)
{
    u32 function = ~0u;
    while (function_count < MOST && next_function(&function)) {
        functions[function_count++] = function;
        unsigned registers = config_read(function, 0xc) >> 16 & 0x7f ? 2 : 6;
        for (unsigned index = 0; index < registers && bar_count < MOST; index++) {
            u32 low = config_read(function, 0x10 + 4 * index);
            if (bar(function, index))
                bars[bar_count++] = bar(function, index);
            index += (low & 7) == 4;
        }
        config_write(function, 4, (config_read(function, 4) & 0xffff) | 7);
    }
    print("functions %u bars %u\n", (u64)function_count, (u64)bar_count);
}

// Each byte of each function, by both ways, and places in the rest of ECAM.
static void every_register(struct random *r)
{
    for (unsigned i = 0; i < function_count; i++) {
        for (unsigned offset = 0; offset < 256; offset++)
            config_ports(r, functions[i], offset);
        for (unsigned offset = 0; offset < 0x1000; offset += 1 + next(r) % 3)
            memory_access(r, 0xe0000000 + ((u64)functions[i] << 12) + offset);
    }
    for (unsigned i = 0; i < 500; i++) {
        memory_access(r, 0xe0000000 + (next(r) & 0xfffffff));
        config_ports(r, (u32)(next(r) & 0xffff), next(r) & 0xff);
    }
    outl(0xcf8, 0);
}

// Where BARs were at first, whatever is there now, and the holes between RAM, ECAM and interrupt controllers.
static void every_memory(struct random *r)
{
    for (unsigned i = 0; i < bar_count; i++)
        for (unsigned j = 0; j < 1000; j++)
            memory_access(r, bars[i] + next(r) % 0x4000);
    for (unsigned i = 0; i < 500; i++) {
        memory_access(r, 0x80000000 + next(r) % 0x60000000);
        memory_access(r, 0xf0000000 + next(r) % 0x0ec00000);
        memory_access(r, 0x180000000 + next(r) % 0x7ffffff0);
    }
}

// Bytes by string instructions, to any port but those of `is_power`.
static void strings(struct random *r)
{
    u8 bytes[1024];
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (u8)next(r);
    for (unsigned i = 0; i < 200; i++) {
        u16 port = next(r) % 2 ? (u16)next(r) : (u16)(next(r) & 0xfff);
        if (is_power(port, 4) || port > 0xfffc)
            continue;
        void *at = bytes;
        u64 count = 1 + next(r) % 200;
        switch (next(r) % 4) {
        case 0: __asm__ volatile("rep outsb" : "+S"(at), "+c"(count) : "d"(port) : "memory"); break;
        case 1: __asm__ volatile("rep outsw" : "+S"(at), "+c"(count) : "d"(port) : "memory"); break;
        case 2: __asm__ volatile("rep outsl" : "+S"(at), "+c"(count) : "d"(port) : "memory"); break;
        default: __asm__ volatile("rep insl" : "+D"(at), "+c"(count) : "d"(port) : "memory");
        }
    }
}

void garbage(u64 seed, u32 cpu)
{
    struct random r = seeded(seed + 1000 * cpu);
    for (unsigned round = 0; round < number("rounds", 3); round++) {
        every_register(&r);
        every_memory(&r);
        strings(&r);
    }
    // The other processors leave this to the first: it takes long.
    for (unsigned width = 1; width <= 4 && !cpu && number("ports", 1); width *= 2)
        every_port(&r, width);
    every_register(&r);
    console_again();
    print("\n");
}

// Garbage to the ports of power management, reset and configuration until the machine ends or has been reset often enough.
// How often, is in RAM.
void garbage_power(u64 seed, u32 cpu)
{
    static const u16 ports[] = {0x64, 0x604, 0x605, 0xcf8, 0xcf9, 0xcfa, 0xcfc, 0x600, 0x602, 0x620, 0x628, 0x70, 0x71};
    u64 boots = read64(MARK + 32) == ~seed ? read64(MARK + 40) : 0;
    if (!cpu) {
        write64(MARK + 32, ~seed);
        write64(MARK + 40, ++boots);
    }
    struct random r = seeded(seed + boots + 1000 * cpu);
    if (boots > 20)
        return print("reset often enough\n");
    for (unsigned i = 0; i < 3000; i++)
        port_write(&r, ports[next(&r) % (sizeof ports / sizeof *ports)], 1u << next(&r) % 3);
    console_again();
    print("\nneither off nor reset\n");
}
