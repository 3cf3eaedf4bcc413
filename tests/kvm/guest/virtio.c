// A virtio source of entropy behind a root port, driven as a virtio 1 driver does: features, one queue, MSI-X.
#include "guest.h"

#define MSIX 0x11
#define VENDOR_SPECIFIC 0x09
#define ENTROPY 0x10441af4
#define VECTOR 0x43
#define SIZE 8
#define RINGS (MARK + 0x10000)
#define DESCRIPTORS RINGS
#define AVAILABLE (RINGS + 0x1000)
#define USED (RINGS + 0x2000)
#define BUFFER (RINGS + 0x3000)
#define LENGTH 64

u64 virtio_structure(u32 function, u8 type, u32 *multiplier)
{
    unsigned at = config_read(function, 0x34) & 0xfc;
    for (unsigned limit = 48; at && limit; limit--) {
        u32 header = config_read(function, at);
        if ((header & 0xff) == VENDOR_SPECIFIC && header >> 24 == type) {
            if (multiplier)
                *multiplier = config_read(function, at + 16);
            return bar(function, config_read(function, at + 4) & 0xff) + config_read(function, at + 8);
        }
        at = header >> 8 & 0xfc;
    }
    return 0;
}

static void offer(unsigned index, u16 flags)
{
    u16 published = read16(AVAILABLE + 2);
    write64(DESCRIPTORS + 16 * index, BUFFER);
    write32(DESCRIPTORS + 16 * index + 8, LENGTH);
    write16(DESCRIPTORS + 16 * index + 12, flags);
    write16(DESCRIPTORS + 16 * index + 14, (u16)index);
    write16(AVAILABLE + 4 + 2 * (published % SIZE), (u16)index);
    write16(AVAILABLE + 2, published + 1);
}

bool virtio_negotiate(u64 common)
{
    write8(common + 20, 0);
    while (read8(common + 20))
        __asm__ volatile("pause");
    write8(common + 20, 3);
    write32(common + 8, 0);
    write32(common + 12, 0);
    write32(common + 8, 1);
    write32(common + 12, 1);
    write8(common + 20, 11);
    return read8(common + 20) & 8;
}

static bool start(u64 common)
{
    if (!virtio_negotiate(common))
        return false;
    for (u64 at = DESCRIPTORS; at < BUFFER + LENGTH; at += 8)
        write64(at, 0);
    write16(common + 22, 0);
    write16(common + 24, SIZE);
    write16(common + 26, 0);
    write32(common + 32, DESCRIPTORS);
    write32(common + 36, 0);
    write32(common + 40, AVAILABLE);
    write32(common + 44, 0);
    write32(common + 48, USED);
    write32(common + 52, 0);
    write16(common + 28, 1);
    write8(common + 20, 15);
    return true;
}

static bool requested(u8 vector) { return read32(0xfee00200 + 0x10 * (vector / 32)) >> vector % 32 & 1; }

void entropy(void)
{
    u32 function = 0xff, multiplier = 0;
    do {
        if (!next_function(&function))
            return print("no source of entropy\n");
    } while (config_read(function, 0) != ENTROPY);
    config_write(function, 4, (config_read(function, 4) & 0xffff) | 6);
    u64 common = virtio_structure(function, 1, 0), notify = virtio_structure(function, 2, &multiplier);
    unsigned capability = find_capability(function, MSIX);
    u32 place = config_read(function, capability + 4);
    u64 table = bar(function, place & 7) + (place & ~7u);
    write32(0xfee000f0, 0x1ff);
    write32(table, 0xfee00000);
    write32(table + 4, 0);
    write32(table + 8, VECTOR);
    write32(table + 12, 0);
    config_write(function, capability, 1u << 31);
    if (!start(common))
        return print("features are refused\n");
    print("queue of %u at %x\n", (u64)read16(common + 24), notify + read16(common + 30) * multiplier);
    // By the ioeventfd; the answer is an interrupt.
    offer(0, 2);
    write16(notify + read16(common + 30) * multiplier, 0);
    while (!requested(VECTOR))
        __asm__ volatile("pause");
    u64 sum = 0;
    for (unsigned i = 0; i < LENGTH; i++)
        sum += read8(BUFFER + i);
    print("used %u, length %u, %s\n", (u64)read16(USED + 2), (u64)read32(USED + 8), sum ? "random" : "nothing");
    // A chain that leads to itself.
    offer(1, 3);
    write16(notify, 0);
    while (!(read8(common + 20) & 64))
        __asm__ volatile("pause");
    print("needs a reset; used %u\n", (u64)read16(USED + 2));
    bool again = start(common);
    offer(0, 2);
    write16(notify, 0);
    while (!read16(USED + 2))
        __asm__ volatile("pause");
    print("after it: %s, used %u\n", again ? "negotiated" : "refused", (u64)read16(USED + 2));
}
