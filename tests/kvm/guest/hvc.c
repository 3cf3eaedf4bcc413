// A virtio console behind a root port, polled: says what it is told to, and says again what is typed.
#include "guest.h"

#define CONSOLE 0x10431af4
#define SIZE 4
// Each of the two queues: descriptors, available ring, used ring and buffer, a page each.
#define QUEUE(index) (MARK + 0x20000 + 0x4000 * (u64)(index))
#define LENGTH 64

static u64 common, notify;
static u32 multiplier;

static void set_up(unsigned index)
{
    u64 queue = QUEUE(index);
    for (u64 at = queue; at < queue + 0x4000; at += 8)
        write64(at, 0);
    write16(common + 22, (u16)index);
    write16(common + 24, SIZE);
    write32(common + 32, (u32)queue);
    write32(common + 36, 0);
    write32(common + 40, (u32)queue + 0x1000);
    write32(common + 44, 0);
    write32(common + 48, (u32)queue + 0x2000);
    write32(common + 52, 0);
    write16(common + 28, 1);
}

// Gives the queue its buffer.
static void offer(unsigned index, u32 length, u16 flags)
{
    u64 queue = QUEUE(index);
    u16 published = read16(queue + 0x1002);
    write64(queue, queue + 0x3000);
    write32(queue + 8, length);
    write16(queue + 12, flags);
    write16(queue + 0x1004 + 2 * (published % SIZE), 0);
    write16(queue + 0x1002, published + 1);
    write16(common + 22, (u16)index);
    write16(notify + read16(common + 30) * multiplier, (u16)index);
}

// Waits until it has it back; with how many bytes.
static u32 back(unsigned index)
{
    u64 queue = QUEUE(index);
    u16 last = read16(queue + 0x1002);
    while (read16(queue + 0x2002) != last)
        __asm__ volatile("pause");
    return read32(queue + 0x2004 + 8 * ((u16)(last - 1) % SIZE) + 4);
}

static void say(const char *text)
{
    u32 length = 0;
    for (; text[length] && length < LENGTH; length++)
        write8(QUEUE(1) + 0x3000 + length, (u8)text[length]);
    offer(1, length, 0);
    back(1);
}

void hvc(void)
{
    u32 function = 0xff;
    do {
        if (!next_function(&function))
            return print("no virtio console\n");
    } while (config_read(function, 0) != CONSOLE);
    config_write(function, 4, (config_read(function, 4) & 0xffff) | 6);
    common = virtio_structure(function, 1, 0);
    notify = virtio_structure(function, 2, &multiplier);
    if (!virtio_negotiate(common))
        return print("features are refused\n");
    set_up(0);
    set_up(1);
    write8(common + 20, 15);
    print("by COM1\n");
    say("by virtio\n");
    for (;;) {
        offer(0, LENGTH, 2);
        u32 count = back(0);
        for (u32 at = 0; at < count; at++) {
            char typed[2] = {(char)read8(QUEUE(0) + 0x3000 + at), 0};
            if (typed[0] == 'q') {
                say("bye\n");
                return;
            }
            say(typed);
        }
    }
}
