// Clocks, and the lines of interrupts.
#include "guest.h"

static u8 cmos(u8 index)
{
    outb(0x70, index);
    return inb(0x71);
}

void clocks(void)
{
    // BCD, so that hexadecimal digits are the decimal ones.
    print("date %x-%x-%x\n", (u64)cmos(0x32) << 8 | cmos(9), (u64)cmos(8), (u64)cmos(7));
    // The PM timer: 3.579545 MHz, 24 bits (ACPI 6.5, 4.8.3.3).
    u32 first = inl(0x608), now;
    do
        now = inl(0x608);
    while (((now - first) & 0xffffff) < 35795);
    print("10 ms are over\n");
    // What is in battery-backed memory stays there.
    outb(0x70, 0x40);
    outb(0x71, 0x5a);
    print("memory %x\n", (u64)cmos(0x40));
}

// Whether the PIC has been asked for an interrupt by this line (8259A: OCW3 with RR, then the request register).
static bool requested(unsigned line)
{
    u16 pic = line < 8 ? 0x20 : 0xa0;
    outb(pic, 0x0a);
    return inb(pic) >> line % 8 & 1;
}

void interrupts(void)
{
    // COM1: received data available.
    outb(0x3f8 + 1, 1);
    print("type\n");
    while (!requested(4))
        __asm__ volatile("pause");
    print("line 4 for %u\n", (u64)get());
    outb(0x3f8 + 1, 0);
    // The SCI is level-triggered, as the edge/level control register has to be told, and up as long as the button's status is.
    outb(0x4d1, 1 << (9 - 8));
    print("press; line 9 is %s\n", requested(9) ? "up" : "down");
    wait_for_power_button();
    print("line 9 is %s\n", requested(9) ? "up" : "down");
    outw(0x600, 1 << 8);
    print("then %s\n", requested(9) ? "up" : "down");
}
