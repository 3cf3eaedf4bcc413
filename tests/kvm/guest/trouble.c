// What a guest in trouble has: the port to tell of a panic by, and a watchdog. Driven as Linux drives them.
#include "guest.h"

#define PANIC_PORT 0x505
#define WATCHDOG 0x25ab8086
#define RELOAD 0x0c

void panic(u8 events)
{
    print("events %x\n", (u64)inb(PANIC_PORT));
    outb(PANIC_PORT, events);
}

static void unlock(u64 registers)
{
    write16(registers + RELOAD, 0x80);
    write16(registers + RELOAD, 0x86);
}

// Both stages take `ticks` of about a millisecond; it is reloaded `reloads` times, and then no more.
void watchdog(u32 ticks, u64 reloads)
{
    u32 function = ~0u;
    do {
        if (!next_function(&function))
            return print("no watchdog\n");
    } while (config_read(function, 0) != WATCHDOG);
    config_write(function, 4, (config_read(function, 4) & 0xffff) | 2);
    u64 registers = bar(function, 0);
    unlock(registers);
    print("time ran out before: %s\n", read16(registers + RELOAD) & 1 << 9 ? "yes" : "no");
    write16(registers + RELOAD, 1 << 9);
    for (unsigned stage = 0; stage < 8; stage += 4) {
        unlock(registers);
        write32(registers + stage, ticks);
    }
    config_write(function, 0x68, 2);
    for (u64 i = 0; i < reloads; i++) {
        unlock(registers);
        write16(registers + RELOAD, 1 << 8);
    }
    print("it runs\n");
}
