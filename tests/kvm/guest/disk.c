// A driver for virtio-blk (virtio 1.2, 5.2) that writes without end and says what it was told is durable. Whoever reads
// that, and kills the machine, can tell from the numbers alone what must be on the disk: tests/disk/killed.rs has the same
// arithmetic.
#include "guest.h"

#define BLOCK 4096
#define SECTORS (BLOCK / 512)
#define BATCH 8
#define STRIDE 1777
#define ENTRIES 32

#define OUT 1
#define FLUSH 4
#define WRITE_ZEROES 13

#define NEXT 1
#define DEVICE_WRITES 2

static struct { u64 address; u32 length; u16 flags, next; } descriptors[ENTRIES] __attribute__((aligned(4096)));
static struct { u16 flags, index, ring[ENTRIES]; } available __attribute__((aligned(4096)));
static struct { u16 flags, index; struct { u32 id, length; } ring[ENTRIES]; } used __attribute__((aligned(4096)));
static u64 data[BATCH][BLOCK / 8] __attribute__((aligned(4096)));
static struct { u32 kind, reserved; u64 sector; } headers[BATCH];
static struct { u64 sector; u32 sectors, flags; } ranges[BATCH];
static volatile u8 statuses[BATCH];

static u64 doorbell;

static u64 mix(u64 x)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

// Where a structure of this kind is (4.1.4), and with `multiplier` what follows it.
static u64 structure(u32 function, u8 kind, u32 *multiplier)
{
    unsigned at = config_read(function, 0x34) & 0xfc;
    for (unsigned limit = 48; at && limit; limit--) {
        u32 header = config_read(function, at);
        if ((header & 0xff) == 9 && header >> 24 == kind) {
            if (multiplier)
                *multiplier = config_read(function, at + 16);
            return bar(function, config_read(function, at + 4) & 0xff) + config_read(function, at + 8);
        }
        at = header >> 8 & 0xfc;
    }
    return 0;
}

static bool start(void)
{
    u32 function = 0xff;
    do
        if (!next_function(&function))
            return false;
    while (config_read(function, 0) != 0x10421af4);
    config_write(function, 4, (config_read(function, 4) & 0xffff) | 6);
    u32 multiplier = 0;
    u64 common = structure(function, 1, 0), notify = structure(function, 2, &multiplier);
    write8(common + 20, 0);
    while (read8(common + 20))
        ;
    write8(common + 20, 1);
    write8(common + 20, 1 | 2);
    write32(common, 0);
    u32 offered = read32(common + 4);
    print("features %x\n", (u64)offered);
    write32(common + 8, 0);
    write32(common + 12, offered & (1u << 9 | 1u << 14));
    write32(common + 8, 1);
    write32(common + 12, 1);
    write8(common + 20, 1 | 2 | 8);
    if (!(read8(common + 20) & 8))
        return false;
    write16(common + 22, 0);
    write16(common + 24, ENTRIES);
    write64(common + 32, (u64)descriptors);
    write64(common + 40, (u64)&available);
    write64(common + 48, (u64)&used);
    doorbell = notify + (u64)read16(common + 30) * multiplier;
    write16(common + 28, 1);
    write8(common + 20, 1 | 2 | 8 | 4);
    return true;
}

static void describe(unsigned at, volatile void *what, u32 length, u16 flags)
{
    descriptors[at].address = (u64)what;
    descriptors[at].length = length;
    descriptors[at].flags = flags;
    descriptors[at].next = (u16)(at + 1);
}

// Hands request `slot` to the device: a header, perhaps data, and a status.
static void submit(unsigned slot, u32 kind, u64 sector, void *what, u32 length)
{
    unsigned at = 3 * slot;
    headers[slot].kind = kind;
    headers[slot].sector = sector;
    statuses[slot] = 0xff;
    describe(at, &headers[slot], 16, NEXT);
    if (length)
        describe(at + 1, what, length, NEXT);
    else
        descriptors[at].next = (u16)(at + 2);
    describe(at + 2, &statuses[slot], 1, DEVICE_WRITES);
    available.ring[available.index % ENTRIES] = (u16)at;
    __asm__ volatile("" : : : "memory");
    *(volatile u16 *)&available.index = (u16)(available.index + 1);
}

// Rings, and waits until all that was handed over came back well.
static bool done(unsigned count)
{
    __asm__ volatile("mfence" : : : "memory");
    write16(doorbell, 0);
    while (*(volatile u16 *)&used.index != available.index)
        __asm__ volatile("pause" : : : "memory");
    for (unsigned slot = 0; slot < count; slot++)
        if (statuses[slot]) {
            print("status %u of request %u\n", (u64)statuses[slot], (u64)slot);
            return false;
        }
    return true;
}

static void write_block(unsigned slot, u64 n, u64 blocks)
{
    u64 sector = (mix(n / BATCH) + n % BATCH * STRIDE) % blocks * SECTORS;
    if (n % 7 == 3) {
        ranges[slot].sector = sector;
        ranges[slot].sectors = SECTORS;
        ranges[slot].flags = 1;
        submit(slot, WRITE_ZEROES, 0, &ranges[slot], sizeof ranges[slot]);
        return;
    }
    for (unsigned i = 0; i < BLOCK / 8; i++)
        data[slot][i] = mix(n) + i;
    submit(slot, OUT, sector, data[slot], BLOCK);
}

void disk(void)
{
    u64 blocks = number("blocks", 1), first = number("first", 0), last = first + number("count", 1u << 30);
    if (!start())
        return print("no disk\n");
    for (u64 n = first; n < last; n += BATCH) {
        for (unsigned slot = 0; slot < BATCH; slot++)
            write_block(slot, n + slot, blocks);
        if (!done(BATCH))
            return;
        submit(0, FLUSH, 0, 0, 0);
        if (!done(1))
            return;
        print("durable %u\n", n + BATCH);
    }
    print("all\n");
}
