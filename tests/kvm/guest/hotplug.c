// The slot of the first root port, driven as pciehp of Linux does (PCIe 6.0, 6.7), but by looking instead of interrupts.
#include "guest.h"

#define PORT 0x08
#define CARD 0x100
#define EXPRESS 0x10
#define MESSAGES 0x05
#define VECTOR 0x44

// Slot control.
#define ENABLED 0x10f9
#define LIGHT_ON 0x100
#define BLINKS 0x200
#define DARK 0x300
#define POWER_OFF 0x400
// Slot status.
#define BUTTON 0x001
#define PRESENCE_CHANGED 0x008
#define COMPLETED 0x010
#define PRESENT 0x040
#define LINK_CHANGED 0x100

static unsigned control;

static bool requested(u8 vector) { return read32(0xfee00200 + 0x10 * (vector / 32)) >> vector % 32 & 1; }
static u16 status(void) { return config_read16(PORT, control + 2); }
static bool link_is_up(void) { return config_read16(PORT, control - 0x18 + 0x12) & 1 << 13; }

// Waits for one of these events, and clears those.
static u16 take(u16 events)
{
    u16 came;
    while (!(came = status() & events))
        __asm__ volatile("pause");
    config_write16(PORT, control + 2, came);
    return came;
}

static void command(u16 wanted)
{
    config_write16(PORT, control, ENABLED | wanted);
    take(COMPLETED);
}

// An address for each BAR from the port's memory window, and the card decodes.
static void assign(void)
{
    u32 window = config_read(PORT, 0x20), next = (window & 0xfff0) << 16, end = (window | 0xfffff) + 1;
    for (unsigned index = 0; index < 6; index++) {
        unsigned at = 0x10 + 4 * index;
        config_write(CARD, at, ~0u);
        u32 low = config_read(CARD, at);
        if (!low || low & 1)
            continue;
        u32 size = ~(low & ~0xfu) + 1;
        next = (next + size - 1) & ~(size - 1);
        config_write(CARD, at, next);
        if ((low & 6) == 4) {
            config_write(CARD, at + 4, 0);
            index++;
        }
        next += size;
    }
    if (next > end)
        print("the window is too small\n");
    config_write16(CARD, 4, 6);
}

void hotplug(void)
{
    control = find_capability(PORT, EXPRESS) + 0x18;
    unsigned messages = find_capability(PORT, MESSAGES);
    config_write(PORT, messages + 4, 0xfee00000);
    config_write(PORT, messages + 8, 0);
    config_write16(PORT, messages + 12, VECTOR);
    config_write16(PORT, messages + 2, 1);
    write32(0xfee000f0, 0x1ff);
    bool on = status() & PRESENT;
    // The command completes by an interrupt that is not wanted here.
    config_write16(PORT, control, (on ? LIGHT_ON : DARK | POWER_OFF) | 0xc0);
    config_write16(PORT, control + 2, 0xffff);
    config_write16(PORT, control, config_read16(PORT, control) | (ENABLED & ~COMPLETED));
    config_write16(PORT, control + 2, 0xffff);
    print("slot %s, interrupted %u\n", on ? "on" : "off", (u64)requested(VECTOR));
    for (u64 rounds = number("rounds", 1); rounds;) {
        u16 events = take(BUTTON | PRESENCE_CHANGED);
        bool present = status() & PRESENT;
        if (on && !present) {
            print("gone by surprise; link %u, reads %x\n", (u64)link_is_up(), (u64)config_read(CARD, 0));
            command(DARK | POWER_OFF);
            take(LINK_CHANGED);
            on = false;
        } else if (on && events & BUTTON) {
            print("button; interrupted %u\n", (u64)requested(VECTOR));
            command(BLINKS);
            command(BLINKS | POWER_OFF);
            take(LINK_CHANGED);
            print("link %u, reads %x\n", (u64)link_is_up(), (u64)config_read(CARD, 0));
            command(DARK | POWER_OFF);
            take(PRESENCE_CHANGED);
            print("present %u\n", (u64)(status() / PRESENT & 1));
            on = false;
        } else if (!on && present) {
            print("card; reads %x\n", (u64)config_read(CARD, 0));
            command(BLINKS);
            take(LINK_CHANGED);
            assign();
            command(LIGHT_ON);
            print("on; reads %x\n", (u64)config_read(CARD, 0));
            on = true;
            rounds--;
        }
    }
    if (word_is("then", "device"))
        device();
    if (word_is("then", "disk"))
        disk();
    if (word_is("then", "entropy"))
        entropy();
}
